//! Adapts the client of a database server, a [`Remote`], to [`Storage`]: group commit, retries, deadlines, outcomes that are
//! looked up, and exclusive ownership.
//!
//! A commit task collects queued batches into a group and commits each group in one transaction. If the server refuses or
//! rejects a group, only the batches that are at fault fail. Durable commits of a shared database have a task of their own, so
//! that buffered ones do not wait for them. A lost connection costs a retry, and the outcome of an interrupted commit is looked
//! up.
//!
//! A database for a single process belongs to a data directory. Its claim is part of every transaction, so a process that lost
//! it cannot write any more. A restarted process with the same directory takes the claim over at once, another directory only
//! after the owner has closed, or has not renewed its claim for a lease. The module stores the claims, and the identity of the
//! database, in the space `enjambre_storage`.

mod claim;
mod committer;
mod lane;
mod merge;
mod remote;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::Storage;
use super::budget::CommitBudget;
use super::database_file::{FileLock, create_parent_dir, lock, path_for};
use super::error::StorageError;
use super::location::{Place, Tenancy};
use super::value::{Batch, Durability, Key, KeyRange, Limits, Role, Space, Write};
use crate::model::time::human;
use crate::runtime;
use crate::runtime::backoff::Backoff;
use claim::{META, WRITERS, check_identity, identity_key, is_expired, new_identity};
use committer::{Commit, Committer, Request, Ticket};
use lane::Lane;
pub use remote::{Remote, TransactError, Transacted, Transaction};

/// The maximum number of requests in one queue.
const QUEUED: usize = 1024;
/// The maximum size in bytes of the batches in one queue. A larger batch is queued alone.
const QUEUED_BYTES: usize = 16 * 1024 * 1024;
/// The interval at which an owner renews its claim.
const RENEWAL: Duration = Duration::from_secs(10);
/// The timeout of a close, including the requests queued before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The delays between attempts to connect at the start.
const MIN_CONNECT_DELAY: Duration = Duration::from_millis(250);
const MAX_CONNECT_DELAY: Duration = Duration::from_secs(1);

/// The settings of a [`Queued`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QueuedSettings {
    /// The timeout in the queue, of a call of the remote, and of the retries of a commit.
    pub timeout: Duration,
    /// How long an opening waits for an unreachable server.
    pub start_timeout: Duration,
    /// The least time after the last renewal until another data directory may take over a database with an owner.
    pub min_lease: Duration,
}

impl Default for QueuedSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(30),
            min_lease: Duration::from_secs(30),
        }
    }
}

impl QueuedSettings {
    /// The timeout of a call of the remote, which has time to report its own timeouts.
    fn call_timeout(&self) -> Duration {
        self.timeout + Duration::from_secs(1)
    }

    /// The lease of an owner. It does not renew its claim while it commits, retries, looks up and splits a group, and each of
    /// these steps takes up to the timeout.
    fn lease(&self) -> Duration {
        self.min_lease.max(self.timeout * 6 + RENEWAL)
    }
}

/// A [`Storage`] on a database server.
pub struct Queued {
    remote: Arc<dyn Remote>,
    settings: Arc<QueuedSettings>,
    limits: Limits,
    requests: UnboundedSender<Request>,
    /// The queue of buffered commits.
    buffered: CommitBudget,
    /// The queue of durable commits and syncs, which may wait for a slow disk or an unreachable replica.
    durable: CommitBudget,
    closing: AtomicBool,
    /// Becomes true when the commit tasks have ended.
    ended: watch::Receiver<bool>,
}

impl Queued {
    /// Opens the database for a role, or initializes a new one. Waits for an unreachable server, so that nodes and servers can be
    /// started in any order.
    ///
    /// # Errors
    /// - [`StorageError::Locked`]: the database is for a single process, and another one has opened it.
    /// - [`StorageError::Corrupt`], [`StorageError::NewerFormat`]: the database was written for another role or by a newer program.
    /// - [`StorageError::Unavailable`]: the server was not reachable within the start timeout.
    pub async fn open(
        remote: impl Remote,
        place: &Place,
        role: Role,
        settings: QueuedSettings,
    ) -> Result<Self, StorageError> {
        let (lock, owner) = lock_place(place, role).await?;
        let (remote, settings): (Arc<dyn Remote>, _) = (Arc::new(remote), Arc::new(settings));
        let identity = prepare(&remote, &settings, role).await?;
        let limits = remote.limits();
        let mut lane = Lane::new(remote.clone(), settings.clone(), owner, identity);
        if lane.is_owner() {
            lane.take_ownership().await?;
        } else {
            remove_expired_claims(&*remote, &settings).await?;
        }
        let (requests, received) = unbounded_channel();
        Ok(Self {
            remote,
            settings,
            limits,
            requests,
            buffered: CommitBudget::new(QUEUED, QUEUED_BYTES),
            durable: CommitBudget::new(QUEUED, QUEUED_BYTES),
            closing: AtomicBool::new(false),
            ended: Committer::start(lane, limits, received, lock),
        })
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.closing.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    /// A read that fails because of the close returns `Closed`.
    fn closed_or(&self, error: StorageError) -> StorageError {
        self.check_open().err().unwrap_or(error)
    }

    fn queue_timeout(&self) -> StorageError {
        StorageError::Unavailable {
            reason: format!("earlier commits took longer than {}", human(self.settings.timeout)),
        }
    }

    /// Waits for the reply of the commit task. The timeout only covers the time in the queue: the task limits its own work.
    async fn wait_for_reply(
        &self,
        ticket: &Ticket,
        mut reply: oneshot::Receiver<Result<(), StorageError>>,
    ) -> Result<(), StorageError> {
        let outcome = match timeout(self.settings.timeout, &mut reply).await {
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

/// Locks the data directory, and returns its id, unless several processes use the database.
async fn lock_place(place: &Place, role: Role) -> Result<(Option<FileLock>, Option<String>), StorageError> {
    if place.tenancy == Tenancy::Shared {
        return Ok((None, None));
    }
    let place = place.clone();
    let locked = runtime::spawn_blocking(move || {
        let path = place.data_dir.join("storage");
        create_parent_dir(&path)?;
        Ok((Some(lock(&path_for(role, &path))?), Some(place.folder_id()?)))
    });
    locked.await.unwrap_or_else(|error| Err(StorageError::backend("lock the data directory", error)))
}

/// Prepares the server and returns the identity of the database.
async fn prepare(
    remote: &Arc<dyn Remote>,
    settings: &QueuedSettings,
    role: Role,
) -> Result<Bytes, StorageError> {
    let deadline = Instant::now() + settings.start_timeout;
    let mut backoff = Backoff::new(MIN_CONNECT_DELAY, MAX_CONNECT_DELAY);
    let mut is_logged = false;
    loop {
        let delay = backoff.next_jittered();
        let prepared = async {
            let limit = settings.call_timeout();
            timeout(limit, remote.prepare())
                .await
                .unwrap_or_else(|_| Err(StorageError::Unavailable { reason: no_reply(limit) }))?;
            identity(&**remote, settings, role).await
        };
        let error = match prepared.await {
            Err(error @ StorageError::Unavailable { .. }) if Instant::now() + delay < deadline => error,
            prepared => return prepared,
        };
        if !is_logged {
            is_logged = true;
            let timeout = human(settings.start_timeout);
            tracing::warn!(%error, database = remote.description(), %timeout, "waiting for the database");
        }
        sleep(delay).await;
    }
}

/// Returns the identity of the database. Stores one in a new database. Several processes may do so at the same time.
async fn identity(remote: &dyn Remote, settings: &QueuedSettings, role: Role) -> Result<Bytes, StorageError> {
    let key = identity_key();
    let read = || get(remote, settings, META, std::slice::from_ref(&key));
    let mut stored = read().await?.remove(0);
    if stored.is_none() {
        let mut batch = Batch::new();
        batch.require_absent(META, key.clone()).put(META, key.clone(), new_identity(role));
        transact(remote, settings, batch, Durability::Durable, settings.timeout).await?;
        stored = read().await?.remove(0);
    }
    let missing =
        || StorageError::Unavailable { reason: "the identity of the database is missing".to_owned() };
    let stored = stored.ok_or_else(missing)?;
    check_identity(&stored, remote.description(), role).map(|()| stored)
}

/// Removes the claims of writers that ended long ago without a close.
async fn remove_expired_claims(remote: &dyn Remote, settings: &QueuedSettings) -> Result<(), StorageError> {
    let range = KeyRange::prefix(WRITERS);
    let page = read(settings, || remote.scan(META, &range, 1000)).await?;
    let mut batch = Batch::new();
    for (key, value) in page.into_iter().filter(|(_, value)| is_expired(value)) {
        batch.require(META, key.clone(), value);
        batch.writes.push(Write::Delete(META, key));
    }
    if !batch.is_empty() {
        transact(remote, settings, batch, Durability::Buffered, settings.timeout).await?;
    }
    Ok(())
}

/// Runs a transaction with a timeout, after which its outcome is unknown.
async fn transact(
    remote: &dyn Remote,
    settings: &QueuedSettings,
    Batch { conditions, writes }: Batch,
    durability: Durability,
    lock_timeout: Duration,
) -> Result<Transacted, TransactError> {
    let transaction = Transaction { conditions, writes, durability, lock_timeout };
    let limit = settings.call_timeout();
    timeout(limit, remote.transact(&transaction))
        .await
        .unwrap_or_else(|_| Err(TransactError::Unknown(no_reply(limit).into())))
}

fn no_reply(limit: Duration) -> String {
    format!("the server did not reply within {}", human(limit))
}

/// Runs a read with a timeout. Repeats it once if the server is unavailable, because a connection may have failed unnoticed.
async fn read<T, F: Future<Output = Result<T, StorageError>>>(
    settings: &QueuedSettings,
    read: impl Fn() -> F,
) -> Result<T, StorageError> {
    let limit = settings.call_timeout();
    let twice = async {
        match read().await {
            Err(StorageError::Unavailable { .. }) => read().await,
            outcome => outcome,
        }
    };
    timeout(limit, twice).await.unwrap_or_else(|_| Err(StorageError::Unavailable { reason: no_reply(limit) }))
}

async fn get(
    remote: &dyn Remote,
    settings: &QueuedSettings,
    space: Space,
    keys: &[Key],
) -> Result<Vec<Option<Bytes>>, StorageError> {
    read(settings, || remote.get(space, keys)).await
}

#[async_trait]
impl Storage for Queued {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.check_open()?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        get(&*self.remote, &self.settings, space, keys).await.map_err(|error| self.closed_or(error))
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
        let page = read(&self.settings, || self.remote.scan(space, &range, limit));
        page.await.map_err(|error| self.closed_or(error))
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.check_open()?;
        self.limits.check(&batch)?;
        let queue = match durability {
            Durability::Buffered => &self.buffered,
            Durability::Durable => &self.durable,
        };
        let permits = timeout(self.settings.timeout, queue.acquire(&batch))
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
        self.limits
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
        if is_first {
            let _ = timeout(CLOSE_TIMEOUT, self.remote.close()).await;
        }
        outcome
    }
}

impl fmt::Debug for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queued").field("remote", &self.remote).finish_non_exhaustive()
    }
}
