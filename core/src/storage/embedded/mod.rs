//! Makes a synchronous [`Engine`] an asynchronous [`Storage`]: group commit, reader threads, bounded queues.
//!
//! One writer thread gathers the batches that are queued, checks the conditions of each against the state and
//! the batches before it, and commits them as one. A few reader threads answer reads, also while it commits.
//! Nothing runs on the threads of the async runtime, and an engine that fails or panics is dropped and opened
//! anew with growing pauses, while callers get [`StorageError::Unavailable`].

mod backoff;
#[cfg(test)]
pub(crate) mod fake;
mod group;
mod pool;
mod request;
mod settings;
mod shared_error;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::Storage;
use super::engine::Engine;
use super::error::StorageError;
use super::value::{Batch, Durability, Key, KeyRange, Limits, Space};
use pool::{Ask, Pool, Read};
use request::{Commit, Request, Sync};
pub use settings::EmbeddedSettings;
pub use shared_error::is_guarded;
use writer::Writer;

/// Bytes are counted in these, because a semaphore counts to `u32` only.
const UNIT: usize = 1024;

/// A [`Storage`] on an embedded engine.
pub struct Embedded<E: Engine> {
    name: String,
    requests: Sender<Request>,
    pool: Arc<Pool<E::Reader>>,
    limits: Limits,
    /// Places for commits and syncs.
    commits: Places,
    /// Places for the bytes of batches, in units.
    bytes: Places,
    /// Places for the keys of reads.
    reads: Places,
    closing: AtomicBool,
    closed: watch::Sender<bool>,
    close_timeout: Duration,
}

/// A bounded number of places; whoever finds none waits its turn.
struct Places {
    semaphore: Arc<Semaphore>,
    all: u32,
}

impl Places {
    fn new(all: usize) -> Self {
        let all = all.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize)) as u32;
        Self { semaphore: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Takes `count` places, or all there are where it asks for more. `Closed` once the storage closes.
    async fn take(&self, count: usize) -> Result<OwnedSemaphorePermit, StorageError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX).clamp(1, self.all);
        self.semaphore.clone().acquire_many_owned(count).await.map_err(|_| StorageError::Closed)
    }
}

impl<E: Engine> Embedded<E> {
    /// Opens an engine and starts its threads. `opener` runs on a thread that may block, and again whenever the engine
    /// has failed.
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
                // Where the opening was given up, the sender of the requests is gone, and the writer ends.
                let _ = opened_sender.send(Ok(limits));
                writer.run();
            })?;
        }
        let limits = match opened.await {
            Ok(Ok(limits)) => limits,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(StorageError::backend("open", "the storage thread ended")),
        };
        let storage = Self {
            name: settings.name.clone(),
            pool: pool.clone(),
            limits,
            commits: Places::new(settings.queued_commits),
            bytes: Places::new(settings.queued_bytes / UNIT),
            reads: Places::new(settings.queued_reads),
            closing: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            close_timeout: settings.close_timeout,
            requests: requests.clone(),
        };
        for index in 0..pool.threads() {
            let (pool, requests) = (pool.clone(), requests.clone());
            // Where this fails, dropping the storage ends the threads that were started.
            spawn(format!("{}-reader-{index}", settings.name), move || {
                pool.serve(|failed| drop(requests.send(Request::Failed(failed))));
            })?;
        }
        Ok(storage)
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.closing.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    fn send(&self, request: Request) -> Result<(), StorageError> {
        self.requests.send(request).map_err(|_| StorageError::Closed)
    }

    /// Queues a read and waits for its answer.
    async fn read<T>(
        &self,
        ask: Ask,
        places: usize,
        answer: oneshot::Receiver<Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.check_open()?;
        let place = self.reads.take(places).await?;
        self.pool.push(Read { ask, _place: place });
        match answer.await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.check_open()?;
                Err(StorageError::Unavailable { reason: "it failed while it read".to_owned() })
            }
        }
    }

    /// Closes the doors, once; says whether it was this call.
    fn begin_close(&self) -> bool {
        let first = !self.closing.swap(true, Ordering::AcqRel);
        if first {
            for places in [&self.commits, &self.bytes, &self.reads] {
                places.semaphore.close();
            }
        }
        first
    }
}

/// Starts a thread of its own.
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
        let (reply, answer) = oneshot::channel();
        self.read(Ask::Get { space, keys: keys.to_vec(), reply }, keys.len(), answer).await
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
        let (reply, answer) = oneshot::channel();
        let max_bytes = self.limits.max_page_bytes;
        self.read(Ask::Scan { space, range, limit, max_bytes, reply }, 1, answer).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.check_open()?;
        self.limits.check(&batch)?;
        // In this order for everyone, so that nobody waits for somebody who waits.
        let places = [self.commits.take(1).await?, self.bytes.take(batch.size().div_ceil(UNIT)).await?];
        let (reply, answer) = oneshot::channel();
        self.send(Request::Commit(Commit { batch, durability, reply, _places: places }))?;
        match answer.await {
            Ok(outcome) => outcome,
            // The queue behind a close is dropped unseen.
            Err(_) if self.closing.load(Ordering::Acquire) => Err(StorageError::Closed),
            Err(_) => Err(StorageError::Indeterminate { source: "the storage thread ended".into() }),
        }
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.check_open()?;
        let place = self.commits.take(1).await?;
        let (reply, answer) = oneshot::channel();
        self.send(Request::Sync(Sync { reply, _place: place }))?;
        answer.await.unwrap_or(Err(StorageError::Closed))
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn close(&self) -> Result<(), StorageError> {
        let mut closed = self.closed.subscribe();
        if !self.begin_close() {
            // The sender lives in `self`, so this waits for the first close and for nothing else.
            let _ = closed.wait_for(|closed| *closed).await;
            return Ok(());
        }
        let (done, finished) = channel();
        // Where the writer is gone already, `done` is dropped, and the wait below ends at once.
        let _ = self.requests.send(Request::Close(done));
        let (reply, answer) = oneshot::channel();
        let (closed, patience) = (self.closed.clone(), self.close_timeout);
        // A thread waits, not a timer: the engine may hang, and the clock of the runtime may be a simulated one.
        let watch = move || {
            let outcome = match finished.recv_timeout(patience) {
                Ok(outcome) => outcome,
                Err(RecvTimeoutError::Disconnected) => Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    Err(StorageError::backend("close", format!("it did not end within {patience:?}")))
                }
            };
            closed.send_replace(true);
            let _ = reply.send(outcome);
        };
        if let Err(error) = spawn(format!("{}-close", self.name), watch) {
            self.closed.send_replace(true);
            return Err(error);
        }
        answer.await.unwrap_or(Ok(()))
    }
}

impl<E: Engine> Drop for Embedded<E> {
    fn drop(&mut self) {
        if self.begin_close() {
            // The threads end by themselves; waiting for them here could block a thread of the runtime.
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
