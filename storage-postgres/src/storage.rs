//! The storage as callers see it: reads on a pool of connections, commits through the committing task.

use std::collections::HashMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use enjambre_core::buffers::BufferPool;
use enjambre_core::storage::Storage;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::error::{Class, Failure};
use crate::request::{Commit, Request, Sync, Turn};
use crate::schema::Schema;
use crate::server::Servers;

const LIMITS: Limits =
    Limits { max_value: 1024 * 1024, max_batch: 16 * 1024 * 1024, max_page_bytes: 1024 * 1024 };
/// How many entries a page has at most, whatever was asked for: the server looks at so many to find where it ends.
const PAGE_ENTRIES: usize = 1024;
/// How many commits and syncs wait or run in one queue at most before callers wait for a place.
const QUEUED: usize = 1024;
/// How many bytes of batches wait or run at most, in units of [`UNIT`]; a larger batch goes alone.
const QUEUED_UNITS: u32 = 16 * 1024;
const UNIT: usize = 1024;
/// Values of this length on are copied into buffers that are used again.
const LARGE: usize = 32 * 1024;
/// How many bytes of such buffers are kept.
const KEPT: usize = 8 * 1024 * 1024;
/// How long a close may take, with what is queued before it.
const CLOSE: Duration = Duration::from_secs(10);

/// Makes connections for the pool.
#[derive(Debug)]
pub(crate) struct Readers(pub(crate) Arc<Servers>);

impl managed::Manager for Readers {
    type Type = Connection;
    type Error = StorageError;

    async fn create(&self) -> Result<Connection, StorageError> {
        self.0.connect().await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<StorageError> {
        if connection.is_closed() { Err(RecycleError::message("the connection has ended")) } else { Ok(()) }
    }
}

pub(crate) type Pool = managed::Pool<Readers>;

/// Connections to read on, of which none is made before it is needed.
pub(crate) fn pool(servers: Arc<Servers>, connections: usize) -> Result<Pool, StorageError> {
    let patience = servers.patience;
    Pool::builder(Readers(servers))
        .max_size(connections.clamp(1, 1000))
        .wait_timeout(Some(patience))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| StorageError::backend("make a pool of connections", error))
}

/// The places of commits and syncs that wait or run.
struct Queue {
    places: Arc<Semaphore>,
    /// For the bytes of batches.
    bytes: Arc<Semaphore>,
}

impl Queue {
    fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(QUEUED)),
            bytes: Arc::new(Semaphore::new(QUEUED_UNITS as usize)),
        }
    }

    fn close(&self) {
        self.places.close();
        self.bytes.close();
    }
}

/// The storage on PostgreSQL.
pub(crate) struct Postgres {
    pool: Pool,
    schema: Arc<Schema>,
    patience: Duration,
    requests: UnboundedSender<Request>,
    /// Where what need not be durable waits.
    brief: Queue,
    /// Where everything else waits, which a slow disk or a replica that is away may make long.
    durable: Queue,
    buffers: BufferPool,
    closing: AtomicBool,
    ended: watch::Receiver<bool>,
}

impl Postgres {
    /// `ended` becomes true when the committing tasks have ended.
    pub(crate) fn new(
        pool: Pool,
        schema: Arc<Schema>,
        patience: Duration,
        requests: UnboundedSender<Request>,
        ended: watch::Receiver<bool>,
    ) -> Self {
        Self {
            pool,
            schema,
            patience,
            requests,
            brief: Queue::new(),
            durable: Queue::new(),
            buffers: BufferPool::new(KEPT),
            closing: AtomicBool::new(false),
            ended,
        }
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.closing.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    /// A connection to read on, for as long as it is held.
    async fn reader(&self) -> Result<Object<Readers>, StorageError> {
        self.check_open()?;
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Closed => StorageError::Closed,
            PoolError::Timeout(_) => StorageError::Unavailable {
                reason: format!("none of its connections became free within {:?}", self.patience),
            },
            PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                StorageError::backend("take a connection", "the pool is not set up")
            }
        })
    }

    /// After a read failed: whether it is to be tried again on another connection, because this one had ended before.
    fn again(&self, reader: Object<Readers>, failure: Failure, first: bool) -> Result<(), StorageError> {
        let lost = failure.class() == Class::Lost;
        if lost {
            drop(Object::take(reader));
        }
        if lost && first && !matches!(failure, Failure::Silent(_)) {
            return Ok(());
        }
        self.check_open()?;
        Err(failure.explain("read"))
    }

    async fn get_from(
        &self,
        reader: &Connection,
        space: Space,
        keys: &[Key],
    ) -> Result<Vec<Option<Bytes>>, Failure> {
        if !self.schema.exists(reader, space).await? {
            return Ok(vec![None; keys.len()]);
        }
        let asked: Vec<&[u8]> = keys.iter().map(Key::as_bytes).collect();
        let rows = reader.query(&self.schema.select(space), &[&asked]).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let (key, value): (&[u8], &[u8]) =
                (row.try_get(0).map_err(Failure::Server)?, row.try_get(1).map_err(Failure::Server)?);
            found.insert(key, self.copy(value));
        }
        Ok(asked.into_iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn scan_from(
        &self,
        reader: &Connection,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Failure> {
        if !self.schema.exists(reader, space).await? {
            return Ok(Vec::new());
        }
        let limit = limit.min(PAGE_ENTRIES) as i64;
        let bytes = LIMITS.max_page_bytes as i64;
        let sql = self.schema.scan(space, range);
        let rows = reader.query(&sql, &[&bound(&range.start), &bound(&range.end), &limit, &bytes]).await?;
        let mut page = Vec::with_capacity(rows.len());
        for row in &rows {
            let (key, value): (&[u8], &[u8]) =
                (row.try_get(0).map_err(Failure::Server)?, row.try_get(1).map_err(Failure::Server)?);
            page.push((Bytes::copy_from_slice(key), self.copy(value)));
        }
        Ok(page)
    }

    fn copy(&self, value: &[u8]) -> Bytes {
        if value.len() < LARGE {
            return Bytes::copy_from_slice(value);
        }
        let mut copy = self.buffers.take(value.len());
        copy.copy_from_slice(value);
        copy.freeze()
    }

    /// Waits for a place in the queue.
    async fn place(&self, places: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit, StorageError> {
        match timeout(self.patience, places.clone().acquire_many_owned(count)).await {
            Ok(permit) => permit.map_err(|_| StorageError::Closed),
            Err(_) => Err(self.no_turn()),
        }
    }

    fn no_turn(&self) -> StorageError {
        StorageError::Unavailable {
            reason: format!("other commits were waited for longer than {:?}", self.patience),
        }
    }

    /// Waits for the answer of the committing task. It bounds its own time; what is bounded here is the wait for it.
    async fn answer(
        &self,
        turn: &Turn,
        mut answer: oneshot::Receiver<Result<(), StorageError>>,
    ) -> Result<(), StorageError> {
        let outcome = match timeout(self.patience, &mut answer).await {
            Ok(outcome) => outcome,
            Err(_) if turn.take() => return Err(self.no_turn()),
            Err(_) => answer.await,
        };
        match outcome {
            Ok(outcome) => outcome,
            // The queue behind a close is dropped unseen.
            Err(_) if self.closing.load(Ordering::Acquire) => Err(StorageError::Closed),
            Err(_) => Err(StorageError::Indeterminate { source: "the committing task ended".into() }),
        }
    }

    /// Closes the doors, once; says whether it was this call.
    fn begin_close(&self) -> bool {
        let first = !self.closing.swap(true, Ordering::AcqRel);
        if first {
            self.brief.close();
            self.durable.close();
        }
        first
    }
}

fn bound(bound: &Bound<Bytes>) -> Option<&[u8]> {
    match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key),
        Bound::Unbounded => None,
    }
}

#[async_trait]
impl Storage for Postgres {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.check_open()?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut first = true;
        loop {
            let reader = self.reader().await?;
            match self.get_from(&reader, space, keys).await {
                Ok(values) => return Ok(values),
                Err(failure) => self.again(reader, failure, first)?,
            }
            first = false;
        }
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.check_open()?;
        if limit == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        let mut first = true;
        loop {
            let reader = self.reader().await?;
            match self.scan_from(&reader, space, &range, limit).await {
                Ok(page) => {
                    let impossible =
                        |_| StorageError::corrupt(format!("{} has an impossible key", self.schema.place));
                    let entries =
                        page.into_iter().map(|(key, value)| Ok((Key::new(key).map_err(impossible)?, value)));
                    return entries.collect();
                }
                Err(failure) => self.again(reader, failure, first)?,
            }
            first = false;
        }
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.check_open()?;
        LIMITS.check(&batch)?;
        let units = u32::try_from(batch.size().div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, QUEUED_UNITS);
        let queue = match durability {
            Durability::Buffered => &self.brief,
            Durability::Durable => &self.durable,
        };
        // In this order for everyone, so that nobody waits for somebody who waits.
        let places = [self.place(&queue.places, 1).await?, self.place(&queue.bytes, units).await?];
        let (reply, answer) = oneshot::channel();
        let turn = Turn::default();
        let commit = Commit { batch, durability, turn: turn.clone(), reply, _places: places };
        self.requests.send(Request::Commit(commit)).map_err(|_| StorageError::Closed)?;
        self.answer(&turn, answer).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.check_open()?;
        let place = self.place(&self.durable.places, 1).await?;
        let (reply, answer) = oneshot::channel();
        let turn = Turn::default();
        let sync = Sync { turn: turn.clone(), reply, _place: place };
        self.requests.send(Request::Sync(sync)).map_err(|_| StorageError::Closed)?;
        self.answer(&turn, answer).await
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    async fn close(&self) -> Result<(), StorageError> {
        let (reply, answer) = oneshot::channel();
        // In one step, so that a close which is dropped has asked for the end already, or closed nothing.
        let asked = self.begin_close() && self.requests.send(Request::Close(reply)).is_ok();
        let mut ended = self.ended.clone();
        let end = async {
            if asked {
                return answer.await.unwrap_or(Ok(()));
            }
            // Whoever was first is told how it went. An error is that the task is gone.
            let _ = ended.wait_for(|ended| *ended).await;
            Ok(())
        };
        let late = || StorageError::Unavailable { reason: format!("it did not close within {CLOSE:?}") };
        let outcome = timeout(CLOSE, end).await.unwrap_or_else(|_| Err(late()));
        self.pool.close();
        outcome
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("place", &self.schema.place).finish_non_exhaustive()
    }
}
