//! The implementation of [`Storage`]: reads use a pool of connections, commits and syncs go through the commit task.

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
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::{Batch, Durability, Key, KeyRange, Limits, Space, Storage, StorageError};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use crate::connection::{Connection, key_and_value};
use crate::error::{Class, Failure};
use crate::request::{Commit, Request, Sync, Ticket};
use crate::schema::Schema;
use crate::server::Servers;

const LIMITS: Limits =
    Limits { max_value: 1024 * 1024, max_batch: 16 * 1024 * 1024, max_page_bytes: 1024 * 1024 };
/// The maximum number of entries of a page: the server reads this many to find the end of the page.
const PAGE_ENTRIES: usize = 1024;
/// The maximum number of requests in one queue.
const QUEUED: usize = 1024;
/// The maximum size of the batches in one queue, in units of [`UNIT`]. A larger batch is queued alone.
const QUEUED_UNITS: u32 = 16 * 1024;
const UNIT: usize = 1024;
/// The size in bytes from which a value is copied to a reusable buffer.
const LARGE: usize = 32 * 1024;
/// The bytes of buffers for large values that are kept for reuse.
const KEPT_BUFFERS: usize = 8 * 1024 * 1024;
/// The timeout of a close, including the requests queued before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates the connections of the pool.
#[derive(Debug)]
pub(crate) struct Readers(pub(crate) Arc<Servers>);

impl managed::Manager for Readers {
    type Type = Connection;
    type Error = StorageError;

    async fn create(&self) -> Result<Connection, StorageError> {
        self.0.connect().await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<StorageError> {
        if connection.is_closed() { Err(RecycleError::message("the connection is closed")) } else { Ok(()) }
    }
}

pub(crate) type Pool = managed::Pool<Readers>;

/// Returns a pool of connections for reads. They are opened on demand.
pub(crate) fn pool(servers: Arc<Servers>, connections: usize) -> Result<Pool, StorageError> {
    let timeout = servers.statement_timeout;
    Pool::builder(Readers(servers))
        .max_size(connections.clamp(1, 1000))
        .wait_timeout(Some(timeout))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| StorageError::backend("create the connection pool", error))
}

/// The limits of a queue of commits and syncs.
struct Queue {
    /// One permit for each request.
    requests: Arc<Semaphore>,
    /// One permit for each [`UNIT`] of a batch.
    bytes: Arc<Semaphore>,
}

impl Queue {
    fn new() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(QUEUED)),
            bytes: Arc::new(Semaphore::new(QUEUED_UNITS as usize)),
        }
    }

    fn close(&self) {
        self.requests.close();
        self.bytes.close();
    }
}

/// The storage on PostgreSQL.
pub(crate) struct Postgres {
    pool: Pool,
    schema: Arc<Schema>,
    timeout: Duration,
    requests: UnboundedSender<Request>,
    /// The queue of buffered commits.
    buffered: Queue,
    /// The queue of durable commits and syncs, which may wait for a slow disk or an unreachable replica.
    durable: Queue,
    buffers: BufferPool,
    closing: AtomicBool,
    ended: watch::Receiver<bool>,
}

impl Postgres {
    /// `ended` becomes true when the commit tasks have ended.
    pub(crate) fn new(
        pool: Pool,
        schema: Arc<Schema>,
        timeout: Duration,
        requests: UnboundedSender<Request>,
        ended: watch::Receiver<bool>,
    ) -> Self {
        Self {
            pool,
            schema,
            timeout,
            requests,
            buffered: Queue::new(),
            durable: Queue::new(),
            buffers: BufferPool::new(KEPT_BUFFERS),
            closing: AtomicBool::new(false),
            ended,
        }
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.closing.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    /// Takes a connection from the pool.
    async fn reader(&self) -> Result<Object<Readers>, StorageError> {
        self.check_open()?;
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Closed => StorageError::Closed,
            PoolError::Timeout(_) => {
                StorageError::Unavailable { reason: format!("no free connection within {:?}", self.timeout) }
            }
            PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                StorageError::backend("take a connection", "the pool has no runtime")
            }
        })
    }

    /// Runs a read on a connection of the pool. Retries it once if the connection failed, because a pooled connection may
    /// have been closed unnoticed.
    async fn read<T, F>(&self, read: impl Fn(Object<Readers>) -> F) -> Result<T, StorageError>
    where
        F: Future<Output = (Object<Readers>, Result<T, Failure>)>,
    {
        let mut may_retry = true;
        loop {
            let (reader, result) = read(self.reader().await?).await;
            let failure = match result {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let lost = failure.class() == Class::ConnectionLost;
            if lost {
                drop(Object::take(reader));
            }
            if !lost || !may_retry || matches!(failure, Failure::Timeout(_)) {
                self.check_open()?;
                return Err(failure.explain("read"));
            }
            may_retry = false;
        }
    }

    async fn get_from(
        &self,
        reader: &Connection,
        space: Space,
        keys: &[Key],
    ) -> Result<Vec<Option<Bytes>>, Failure> {
        if !self.schema.has_table(reader, space).await? {
            return Ok(vec![None; keys.len()]);
        }
        let keys: Vec<&[u8]> = keys.iter().map(Key::as_bytes).collect();
        let rows = reader.query(&self.schema.select(space), &[&keys]).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let (key, value) = key_and_value(row)?;
            found.insert(key, self.copy(value));
        }
        Ok(keys.into_iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn scan_from(
        &self,
        reader: &Connection,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Failure> {
        if !self.schema.has_table(reader, space).await? {
            return Ok(Vec::new());
        }
        let limit = limit.min(PAGE_ENTRIES) as i64;
        let bytes = LIMITS.max_page_bytes as i64;
        let sql = self.schema.scan(space, range);
        let rows = reader.query(&sql, &[&bound(&range.start), &bound(&range.end), &limit, &bytes]).await?;
        let mut page = Vec::with_capacity(rows.len());
        for row in &rows {
            let (key, value) = key_and_value(row)?;
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

    /// Waits for permits of a queue.
    async fn permit(
        &self,
        semaphore: &Arc<Semaphore>,
        count: u32,
    ) -> Result<OwnedSemaphorePermit, StorageError> {
        match timeout(self.timeout, semaphore.clone().acquire_many_owned(count)).await {
            Ok(permit) => permit.map_err(|_| StorageError::Closed),
            Err(_) => Err(self.queue_timeout()),
        }
    }

    fn queue_timeout(&self) -> StorageError {
        StorageError::Unavailable { reason: format!("earlier commits took longer than {:?}", self.timeout) }
    }

    /// Waits for the reply of the commit task. The timeout only covers the time in the queue: the task limits its own work.
    async fn wait_for_reply(
        &self,
        ticket: &Ticket,
        mut reply: oneshot::Receiver<Result<(), StorageError>>,
    ) -> Result<(), StorageError> {
        let outcome = match timeout(self.timeout, &mut reply).await {
            Ok(outcome) => outcome,
            Err(_) if ticket.take() => return Err(self.queue_timeout()),
            Err(_) => reply.await,
        };
        match outcome {
            Ok(outcome) => outcome,
            // Requests after a close are dropped without a reply.
            Err(_) if self.closing.load(Ordering::Acquire) => Err(StorageError::Closed),
            Err(_) => Err(StorageError::Indeterminate { source: "the commit task has ended".into() }),
        }
    }

    /// Refuses further requests. Returns whether this was the first call.
    fn begin_close(&self) -> bool {
        let first = !self.closing.swap(true, Ordering::AcqRel);
        if first {
            self.buffered.close();
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
        self.read(|reader| async {
            let values = self.get_from(&reader, space, keys).await;
            (reader, values)
        })
        .await
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
        let page = self
            .read(|reader| async {
                let page = self.scan_from(&reader, space, &range, limit).await;
                (reader, page)
            })
            .await?;
        let invalid =
            |_| StorageError::corrupt(format!("{} contains an invalid key", self.schema.description));
        page.into_iter().map(|(key, value)| Ok((Key::new(key).map_err(invalid)?, value))).collect()
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.check_open()?;
        LIMITS.check(&batch)?;
        let units = u32::try_from(batch.size().div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, QUEUED_UNITS);
        let queue = match durability {
            Durability::Buffered => &self.buffered,
            Durability::Durable => &self.durable,
        };
        // Always in this order, which prevents a deadlock.
        let permits = [self.permit(&queue.requests, 1).await?, self.permit(&queue.bytes, units).await?];
        let (reply, received) = oneshot::channel();
        let ticket = Ticket::default();
        let commit = Commit { batch, durability, ticket: ticket.clone(), reply, _permits: permits };
        self.requests.send(Request::Commit(commit)).map_err(|_| StorageError::Closed)?;
        self.wait_for_reply(&ticket, received).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.check_open()?;
        let permit = self.permit(&self.durable.requests, 1).await?;
        let (reply, received) = oneshot::channel();
        let ticket = Ticket::default();
        let sync = Sync { ticket: ticket.clone(), reply, _permit: permit };
        self.requests.send(Request::Sync(sync)).map_err(|_| StorageError::Closed)?;
        self.wait_for_reply(&ticket, received).await
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    async fn close(&self) -> Result<(), StorageError> {
        let (reply, received) = oneshot::channel();
        // Without an await in between: a call whose future is dropped has either requested the close or changed nothing.
        let is_first = self.begin_close() && self.requests.send(Request::Close(reply)).is_ok();
        let mut ended = self.ended.clone();
        let end = async {
            if is_first {
                return received.await.unwrap_or(Ok(()));
            }
            // The first call receives the outcome. An error means that the task has ended.
            let _ = ended.wait_for(|ended| *ended).await;
            Ok(())
        };
        let late =
            || StorageError::Unavailable { reason: format!("the close took longer than {CLOSE_TIMEOUT:?}") };
        let outcome = timeout(CLOSE_TIMEOUT, end).await.unwrap_or_else(|_| Err(late()));
        self.pool.close();
        outcome
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("schema", &self.schema.description).finish_non_exhaustive()
    }
}
