//! Adapts a synchronous [`Engine`] to [`Storage`]: group commit, reader threads, bounded queues.
//!
//! A writer thread collects queued batches into a group, checks the conditions of each against the state and the preceding
//! batches, and commits the group at once. Reader threads serve reads concurrently. Nothing blocks the threads of the async
//! runtime. An engine that fails or panics is dropped and reopened with exponential backoff; meanwhile callers get
//! [`StorageError::Unavailable`].

mod group;
mod guarded;
mod pool;
mod settings;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::Storage;
use super::budget::{Budget, CommitBudget};
use super::engine::{Engine, ReadError, Reader};
use super::error::StorageError;
use super::value::{Batch, Durability, Key, KeyRange, Limits, Space};
use crate::model::time::human;
use group::Commit;
pub use guarded::{Panicked, guarded, is_guarded};
use pool::{Pool, Read};
pub use settings::EmbeddedSettings;
use writer::{Request, Writer};

/// A [`Storage`] on an embedded engine.
pub struct Embedded<E: Engine> {
    name: String,
    requests: Sender<Request>,
    pool: Arc<Pool<E::Reader>>,
    limits: Limits,
    commits: CommitBudget,
    /// The budget of keys of reads.
    reads: Budget,
    closing: AtomicBool,
    closed: watch::Sender<bool>,
    close_timeout: Duration,
}

impl<E: Engine> Embedded<E> {
    /// Opens an engine and starts the threads. `opener` runs on a blocking thread, and again after each failure of the engine.
    pub async fn open(
        settings: EmbeddedSettings,
        opener: impl Fn() -> Result<E, StorageError> + Send + std::marker::Sync + 'static,
    ) -> Result<Self, StorageError> {
        let pool = Arc::new(Pool::new(settings.readers.max(1)));
        let (requests, received) = channel();
        let (opened_sender, opened) = oneshot::channel();
        {
            let (settings, pool) = (settings.clone(), pool.clone());
            spawn(format!("{}-writer", settings.name), move || {
                let (writer, limits) = match Writer::start(settings, Arc::new(opener), received, pool) {
                    Ok(started) => started,
                    Err(error) => return drop(opened_sender.send(Err(error))),
                };
                // If the caller dropped the future, the request channel is closed and the writer ends.
                let _ = opened_sender.send(Ok(limits));
                writer.run();
            })?;
        }
        let ended = |_| Err(StorageError::backend("open", "the storage thread ended"));
        let limits = opened.await.unwrap_or_else(ended)?;
        let storage = Self {
            name: settings.name.clone(),
            pool: pool.clone(),
            limits,
            commits: CommitBudget::new(settings.queued_commits, settings.queued_bytes),
            reads: Budget::new(settings.queued_reads),
            closing: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            close_timeout: settings.close_timeout,
            requests: requests.clone(),
        };
        for index in 0..pool.threads() {
            let (pool, requests) = (pool.clone(), requests.clone());
            // On failure, dropping the storage ends the threads that were started.
            spawn(format!("{}-reader-{index}", settings.name), move || {
                pool.serve(|failed| drop(requests.send(Request::Failed(failed))));
            })?;
        }
        Ok(storage)
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.closing.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    /// Queues a read and waits for its reply.
    async fn read<T: Send + 'static>(
        &self,
        permits: usize,
        read: impl FnOnce(&mut E::Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.check_open()?;
        let permit = self.reads.acquire(permits).await?;
        let (reply, receiver) = oneshot::channel();
        let query = move |reader: Result<&mut E::Reader, StorageError>| {
            // Closed if the caller dropped its future.
            if !reply.is_closed() {
                let outcome = match reader.map_err(ReadError::Failed).and_then(read) {
                    Err(ReadError::Broken(source)) => return Err(source),
                    Err(ReadError::Failed(error)) => Err(error),
                    Ok(found) => Ok(found),
                };
                let _ = reply.send(outcome);
            }
            Ok(())
        };
        self.pool.push(Read { query: Box::new(query), _permit: permit });
        match receiver.await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.check_open()?;
                Err(StorageError::Unavailable { reason: "the engine failed during the read".to_owned() })
            }
        }
    }

    /// Refuses new calls. Returns whether this is the first call.
    fn begin_close(&self) -> bool {
        let first = !self.closing.swap(true, Ordering::AcqRel);
        if first {
            self.commits.close();
            self.reads.close();
        }
        first
    }
}

/// Starts a thread.
fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StorageError> {
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map(drop)
        .map_err(|error| StorageError::backend("start a thread", error))
}

#[async_trait]
impl<E: Engine> Storage for Embedded<E> {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        if keys.is_empty() {
            return self.check_open().map(|()| Vec::new());
        }
        let keys = keys.to_vec();
        self.read(keys.len(), move |reader| keys.iter().map(|key| reader.get(space, key)).collect()).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        if limit == 0 || range.is_empty() {
            return self.check_open().map(|()| Vec::new());
        }
        let max_bytes = self.limits.max_page_bytes;
        self.read(1, move |reader| reader.scan(space, &range, limit, max_bytes)).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.check_open()?;
        self.limits.check(&batch)?;
        let permits = self.commits.acquire(&batch).await?;
        let (reply, receiver) = oneshot::channel();
        let commit = Commit { batch, durability, reply, _permits: permits };
        self.requests.send(Request::Commit(commit)).map_err(|_| StorageError::Closed)?;
        match receiver.await {
            Ok(outcome) => outcome,
            // Requests queued after the close are dropped.
            Err(_) if self.closing.load(Ordering::Acquire) => Err(StorageError::Closed),
            Err(_) => Err(StorageError::Indeterminate { source: "the storage thread ended".into() }),
        }
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.commit(Batch::new(), Durability::Durable).await
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn close(&self) -> Result<(), StorageError> {
        let mut closed = self.closed.subscribe();
        if !self.begin_close() {
            // The sender is in `self`, so this waits for the first close only.
            let _ = closed.wait_for(|closed| *closed).await;
            return Ok(());
        }
        let (done, finished) = channel();
        // If the writer has ended, `done` is dropped and the wait below returns at once.
        let _ = self.requests.send(Request::Close(done));
        let (reply, receiver) = oneshot::channel();
        let (closed, timeout) = (self.closed.clone(), self.close_timeout);
        // A thread waits instead of a timer, because the clock of the runtime may be simulated.
        let watch = move || {
            let outcome = match finished.recv_timeout(timeout) {
                Ok(outcome) => outcome,
                Err(RecvTimeoutError::Disconnected) => Ok(()),
                Err(RecvTimeoutError::Timeout) => Err(StorageError::backend(
                    "close",
                    format!("the engine did not close within {}", human(timeout)),
                )),
            };
            closed.send_replace(true);
            let _ = reply.send(outcome);
        };
        if let Err(error) = spawn(format!("{}-close", self.name), watch) {
            self.closed.send_replace(true);
            return Err(error);
        }
        receiver.await.unwrap_or(Ok(()))
    }
}

impl<E: Engine> Drop for Embedded<E> {
    fn drop(&mut self) {
        if self.begin_close() {
            // Waiting for the threads could block a thread of the runtime.
            let (done, _) = channel();
            let _ = self.requests.send(Request::Close(done));
        }
    }
}

impl<E: Engine> fmt::Debug for Embedded<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("name", &self.name).finish_non_exhaustive()
    }
}
