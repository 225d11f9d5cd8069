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
use enjambre_core::model::time::human;
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::storage::budget::CommitBudget;
use enjambre_core::storage::database_file::FileLock;
use enjambre_core::{Batch, Durability, Key, KeyRange, Limits, Space, Storage, StorageError};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::committer::{Commit, Committer, Request, Ticket};
use crate::connection::{Connection, key_and_value};
use crate::error::{Class, Failure};
use crate::lane::Lane;
use crate::schema::Schema;
use crate::server::Servers;

const LIMITS: Limits =
    Limits { max_value: 1024 * 1024, max_batch: 16 * 1024 * 1024, max_page_bytes: 1024 * 1024 };
/// The maximum number of entries of a page: the server reads this many to find the end of the page.
const PAGE_ENTRIES: usize = 1024;
/// The maximum number of requests in one queue.
const QUEUED: usize = 1024;
/// The maximum size in bytes of the batches in one queue. A larger batch is queued alone.
const QUEUED_BYTES: usize = 16 * 1024 * 1024;
/// The bytes of buffers for large values that are kept for reuse.
const KEPT_BUFFERS: usize = 8 * 1024 * 1024;
/// The timeout of a close, including the requests queued before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates the connections of the pool.
#[derive(Debug)]
struct Readers(Arc<Servers>);

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

/// The storage on PostgreSQL.
pub(crate) struct Postgres {
    pool: managed::Pool<Readers>,
    schema: Arc<Schema>,
    timeout: Duration,
    requests: UnboundedSender<Request>,
    /// The queue of buffered commits.
    buffered: CommitBudget,
    /// The queue of durable commits and syncs, which may wait for a slow disk or an unreachable replica.
    durable: CommitBudget,
    buffers: BufferPool,
    closing: AtomicBool,
    /// Becomes true when the commit tasks have ended.
    ended: watch::Receiver<bool>,
}

impl Postgres {
    /// Starts the commit tasks. Connections for reads are opened on demand. `lock` is held until the tasks have ended.
    pub(crate) fn start(
        servers: Arc<Servers>,
        schema: Arc<Schema>,
        connections: usize,
        lane: Lane,
        lock: Option<FileLock>,
    ) -> Result<Self, StorageError> {
        let timeout = servers.statement_timeout;
        let pool = managed::Pool::builder(Readers(servers))
            .max_size(connections.clamp(1, 1000))
            .wait_timeout(Some(timeout))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StorageError::backend("create the connection pool", error))?;
        let (requests, received) = unbounded_channel();
        Ok(Self {
            pool,
            schema,
            timeout,
            requests,
            buffered: CommitBudget::new(QUEUED, QUEUED_BYTES),
            durable: CommitBudget::new(QUEUED, QUEUED_BYTES),
            buffers: BufferPool::new(KEPT_BUFFERS),
            closing: AtomicBool::new(false),
            ended: Committer::start(lane, received, lock),
        })
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
            PoolError::Timeout(_) => StorageError::Unavailable {
                reason: format!("no free connection within {}", human(self.timeout)),
            },
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
            found.insert(key, self.buffers.copy(value));
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
            page.push((Bytes::copy_from_slice(key), self.buffers.copy(value)));
        }
        Ok(page)
    }

    fn queue_timeout(&self) -> StorageError {
        StorageError::Unavailable {
            reason: format!("earlier commits took longer than {}", human(self.timeout)),
        }
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
        let queue = match durability {
            Durability::Buffered => &self.buffered,
            Durability::Durable => &self.durable,
        };
        let permits = timeout(self.timeout, queue.acquire(&batch))
            .await
            .unwrap_or_else(|_| Err(self.queue_timeout()))?;
        let (reply, received) = oneshot::channel();
        let ticket = Ticket::default();
        let commit = Commit { batch, durability, ticket: ticket.clone(), reply, _permits: permits };
        self.requests.send(Request::Commit(commit)).map_err(|_| StorageError::Closed)?;
        self.wait_for_reply(&ticket, received).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.commit(Batch::new(), Durability::Durable).await
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
        let late = || StorageError::Unavailable {
            reason: format!("the close took longer than {}", human(CLOSE_TIMEOUT)),
        };
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
