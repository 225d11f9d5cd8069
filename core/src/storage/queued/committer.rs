//! The commit task: collects the queued requests into groups and commits each group in one transaction.
//!
//! If the server rejects a group, its batches are committed one by one, so that only invalid ones fail. Callers receive
//! `Indeterminate` only if the outcome of a commit cannot be looked up in time.
//!
//! A shared database has two commit tasks, each with its own [`Lane`]. The first task receives all requests in order, commits the
//! buffered ones, and then forwards the durable ones to the second task. So a publication that waits for a slow disk or an
//! unreachable replica does not delay renewals of leases. The owner of a database has one task, which keeps the order of all
//! commits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::RENEWAL;
use super::lane::{CommitError, Lane};
use super::merge::Verdict;
use crate::runtime;
use crate::storage::database_file::FileLock;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Limits};

/// The maximum number of batches in a group.
const GROUP_BATCHES: usize = 256;

/// The lock timeout of a buffered commit.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// The lock timeout of a buffered commit while other batches of its group wait.
const SHORT_LOCK_TIMEOUT: Duration = Duration::from_millis(20);
/// The error of a batch that was not attempted.
const OVERLOADED: &str = "earlier commits took too long";

pub(super) type Reply = oneshot::Sender<Result<(), StorageError>>;

pub(super) enum Request {
    Commit(Commit),
    /// The last request that is processed.
    Close(Reply),
}

/// A queued batch. A sync is a durable commit of an empty batch.
pub(super) struct Commit {
    pub(super) batch: Batch,
    pub(super) durability: Durability,
    pub(super) ticket: Ticket,
    pub(super) reply: Reply,
    pub(super) _permits: [OwnedSemaphorePermit; 2],
}

/// Decides between the commit task, which starts a request, and its caller, which withdraws it after a timeout.
#[derive(Debug, Clone, Default)]
pub(super) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// Returns whether this call was the first.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The requests of one transaction, and those that follow it.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    /// Requests for the second task, which are forwarded after the commits.
    forwarded: Vec<Request>,
    close: Option<Reply>,
}

/// The size of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    bytes: usize,
    conditions: usize,
    writes: usize,
}

impl Size {
    fn with(self, batch: &Batch) -> Self {
        Self {
            bytes: self.bytes + batch.size(),
            conditions: self.conditions + batch.conditions.len(),
            writes: self.writes + batch.writes.len(),
        }
    }

    fn exceeds(self, limits: &Limits) -> bool {
        self.bytes > limits.max_batch || self.conditions.max(self.writes) > limits.max_writes
    }
}

/// The outcome of a task, and the reply channel of the close request that ended it.
struct Shutdown {
    reply: Option<Reply>,
    outcome: Result<(), StorageError>,
}

impl Shutdown {
    fn report(self) {
        match (self.reply, self.outcome) {
            (Some(reply), outcome) => _ = reply.send(outcome),
            (None, Ok(())) => {}
            (None, Err(error)) => {
                tracing::warn!(%error, "closing the database failed");
            }
        }
    }
}

/// A commit task.
pub(super) struct Committer {
    requests: UnboundedReceiver<Request>,
    /// A request for the next group.
    carried: Option<Request>,
    limits: Limits,
    lane: Lane,
    /// The task for durable commits, if it is a separate one.
    durable: Option<UnboundedSender<Request>>,
    /// Held until the task ends.
    _lock: Option<FileLock>,
}

impl Committer {
    /// Starts the tasks. The returned value becomes true when the first task has ended and released its resources.
    pub(super) fn start(
        lane: Lane,
        limits: Limits,
        requests: UnboundedReceiver<Request>,
        lock: Option<FileLock>,
    ) -> watch::Receiver<bool> {
        let durable = lane.second().map(|lane| {
            let (durable, received) = unbounded_channel();
            let committer =
                Self { requests: received, carried: None, limits, lane, durable: None, _lock: None };
            runtime::spawn(async move { committer.run().await.report() });
            durable
        });
        let committer = Self { requests, carried: None, limits, lane, durable, _lock: lock };
        let (ended, receiver) = watch::channel(false);
        runtime::spawn(async move {
            let shutdown = committer.run().await;
            ended.send_replace(true);
            shutdown.report();
        });
        receiver
    }

    /// Runs until a close request, or until the storage is dropped.
    async fn run(mut self) -> Shutdown {
        let mut renewal = interval_at(Instant::now() + RENEWAL, RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reply = loop {
            let carried = self.carried.take();
            let next = async {
                match carried {
                    Some(request) => Some(request),
                    None => self.requests.recv().await,
                }
            };
            let first = tokio::select! {
                biased;
                request = next => request,
                _ = renewal.tick(), if self.lane.is_owner() => {
                    self.lane.renew().await;
                    continue;
                }
            };
            let Some(first) = first else { break None };
            let Group { commits, forwarded, close } = self.gather(first);
            self.serve(commits).await;
            if let Some(durable) = &self.durable {
                for request in forwarded {
                    // If the task has ended, the dropped reply channel tells the caller.
                    let _ = durable.send(request);
                }
            }
            if close.is_some() {
                break close;
            }
        };
        // Later requests fail at once.
        self.requests.close();
        let (reply_durable, durable) = oneshot::channel();
        if let Some(task) = self.durable.take() {
            let _ = task.send(Request::Close(reply_durable));
        } else {
            let _ = reply_durable.send(Ok(()));
        }
        let (own, durable) = tokio::join!(self.lane.finish(), durable);
        Shutdown { reply, outcome: own.and(durable.unwrap_or(Ok(()))) }
    }

    /// Collects the queued requests without waiting.
    fn gather(&mut self, first: Request) -> Group {
        let mut group = Group::default();
        let mut size = Size::default();
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit(Commit { durability: Durability::Durable, .. }) if self.durable.is_some() => {
                    group.forwarded.push(request);
                }
                Request::Commit(commit) => {
                    let added = size.with(&commit.batch);
                    if !group.commits.is_empty() && added.exceeds(&self.limits) {
                        self.carried = Some(Request::Commit(commit));
                        break;
                    }
                    if commit.ticket.take() {
                        size = added;
                        group.commits.push(commit);
                    }
                }
                Request::Close(reply) => {
                    group.close = Some(reply);
                    break;
                }
            }
            let full = group.commits.len() >= GROUP_BATCHES || group.forwarded.len() >= GROUP_BATCHES;
            next = if full { None } else { self.requests.try_recv().ok() };
        }
        group
    }

    /// Commits a group and replies to its callers.
    async fn serve(&mut self, commits: Vec<Commit>) {
        if commits.is_empty() {
            return;
        }
        match self.commit(&commits, LOCK_TIMEOUT).await {
            Err(CommitError::Rejected(error) | CommitError::Contended(error)) if commits.len() > 1 => {
                tracing::debug!(%error, batches = commits.len(), "group rejected, committing one by one");
                self.serve_one_by_one(commits).await;
            }
            outcome => _ = reply(outcome, commits),
        }
    }

    /// Commits the batches of a rejected group one by one. Batches that wait for a row lock come last.
    async fn serve_one_by_one(&mut self, commits: Vec<Commit>) {
        let deadline = Instant::now() + self.lane.retry_timeout();
        // Once the server is unavailable, the remaining requests would time out as well.
        let mut unavailable = None::<String>;
        let mut pending: VecDeque<_> =
            commits.into_iter().map(|commit| (commit, SHORT_LOCK_TIMEOUT)).collect();
        while let Some((commit, lock_timeout)) = pending.pop_front() {
            if Instant::now() > deadline {
                unavailable.get_or_insert_with(|| OVERLOADED.to_owned());
            }
            if let Some(reason) = &unavailable {
                let _ = commit.reply.send(Err(unavailable_error(reason)));
                continue;
            }
            match self.commit(std::slice::from_ref(&commit), lock_timeout).await {
                Err(CommitError::Contended(_)) if lock_timeout == SHORT_LOCK_TIMEOUT => {
                    pending.push_back((commit, LOCK_TIMEOUT));
                }
                outcome => unavailable = reply(outcome, vec![commit]),
            }
        }
    }

    async fn commit(
        &mut self,
        commits: &[Commit],
        lock_timeout: Duration,
    ) -> Result<Vec<Verdict>, CommitError> {
        let batches: Vec<&Batch> = commits.iter().map(|commit| &commit.batch).collect();
        let strongest = commits.iter().map(|commit| commit.durability).max();
        self.lane.commit(&batches, strongest.unwrap_or(Durability::Buffered), lock_timeout).await
    }
}

/// Replies to the callers of a group. Returns the reason if the server is unavailable.
fn reply(outcome: Result<Vec<Verdict>, CommitError>, commits: Vec<Commit>) -> Option<String> {
    let (error, reason) = match outcome {
        Ok(verdicts) => {
            for (commit, verdict) in commits.into_iter().zip(verdicts) {
                let applied = verdict == Verdict::Applied;
                let _ = commit.reply.send(if applied { Ok(()) } else { Err(StorageError::Conflict) });
            }
            return None;
        }
        Err(CommitError::Unknown(reason, verdicts)) => {
            for (commit, verdict) in commits.into_iter().zip(verdicts) {
                let error = match verdict {
                    Verdict::Conflict => StorageError::Conflict,
                    Verdict::Applied if !commit.batch.is_empty() => {
                        StorageError::Indeterminate { source: reason.clone().into() }
                    }
                    // A sync, or a conflict only if the earlier batches are applied.
                    Verdict::Applied | Verdict::ConflictInGroup => unavailable_error(&reason),
                };
                let _ = commit.reply.send(Err(error));
            }
            return Some(reason);
        }
        Err(CommitError::Rejected(error) | CommitError::Contended(error)) => (error, None),
        Err(CommitError::Unavailable(error)) => {
            let reason = error.to_string();
            (error, Some(reason))
        }
    };
    for commit in commits {
        let _ = commit.reply.send(Err(error.clone()));
    }
    reason
}

fn unavailable_error(reason: &str) -> StorageError {
    StorageError::Unavailable { reason: reason.to_owned() }
}
