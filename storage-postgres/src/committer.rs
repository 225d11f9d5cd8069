//! The commit task: collects the queued requests into groups and commits each group in one transaction.
//!
//! If the server rejects a group, its batches are committed one by one, so that only invalid ones fail. Callers receive
//! `Indeterminate` only if the outcome of a commit cannot be looked up in time.
//!
//! A shared schema has two commit tasks, each with its own [`Lane`]. The first task receives all requests in order, commits the
//! buffered ones, and then forwards the durable ones to the second task. So a publication that waits for a slow disk or an
//! unreachable replica does not delay renewals of leases. The owner of a schema has one task, which keeps the order of all
//! commits.

use std::fs::File;
use std::time::Duration;

use enjambre_core::{Durability, StorageError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::group::Verdict;
use crate::lane::{CommitError, Lane};
use crate::request::{Commit, Reply, Request, Sync};
use crate::writer::RENEWAL;

/// The maximum number of batches in a group.
const GROUP_BATCHES: usize = 256;
/// The size in bytes from which a group takes no further batch.
const GROUP_BYTES: usize = 16 * 1024 * 1024;

/// The lock timeout of a buffered commit.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// The lock timeout of a buffered commit while other batches of its group wait.
const SHORT_LOCK_TIMEOUT: Duration = Duration::from_millis(20);
/// The error of a batch that was not attempted.
const OVERLOADED: &str = "earlier commits took too long";

/// The requests of one transaction, and those that follow it.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
    /// Requests for the second task, which are forwarded after the commits.
    forwarded: Vec<Request>,
    close: Option<Reply>,
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
                tracing::warn!(storage = "postgres", %error, "closing the database failed");
            }
        }
    }
}

/// A commit task.
pub(crate) struct Committer {
    requests: UnboundedReceiver<Request>,
    lane: Lane,
    /// The task for durable commits, if it is a separate one.
    durable: Option<UnboundedSender<Request>>,
    /// Held until the task ends.
    _lock: Option<File>,
}

impl Committer {
    /// Starts the tasks. The returned value becomes true when the first task has ended and released its resources.
    pub(crate) fn start(
        lane: Lane,
        requests: UnboundedReceiver<Request>,
        lock: Option<File>,
    ) -> watch::Receiver<bool> {
        let durable = lane.second().map(|lane| {
            let (durable, received) = unbounded_channel();
            let committer = Self { requests: received, lane, durable: None, _lock: None };
            tokio::spawn(async move { committer.run().await.report() });
            durable
        });
        let committer = Self { requests, lane, durable, _lock: lock };
        let (ended, receiver) = watch::channel(false);
        tokio::spawn(async move {
            let shutdown = committer.run().await;
            ended.send_replace(true);
            shutdown.report();
        });
        receiver
    }

    /// Runs until a close request, or until the storage is dropped.
    async fn run(mut self) -> Shutdown {
        let mut renewal = interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reply = loop {
            let first = tokio::select! {
                request = self.requests.recv() => request,
                _ = renewal.tick(), if self.lane.is_owner() => {
                    self.lane.renew().await;
                    continue;
                }
            };
            let Some(first) = first else { break None };
            let Group { commits, syncs, forwarded, close } = self.gather(first);
            self.serve(commits, syncs).await;
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
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit(Commit { durability: Durability::Durable, .. }) | Request::Sync(_)
                    if self.durable.is_some() =>
                {
                    group.forwarded.push(request);
                }
                Request::Commit(commit) => {
                    if commit.ticket.take() {
                        bytes += commit.batch.size();
                        group.commits.push(commit);
                    }
                }
                Request::Sync(sync) => {
                    if sync.ticket.take() {
                        group.syncs.push(sync);
                    }
                }
                Request::Close(reply) => {
                    group.close = Some(reply);
                    break;
                }
            }
            let many = group.commits.len() >= GROUP_BATCHES || group.forwarded.len() >= GROUP_BATCHES;
            let full = many || bytes >= GROUP_BYTES;
            next = if full { None } else { self.requests.try_recv().ok() };
        }
        group
    }

    /// Commits a group and replies to its callers.
    async fn serve(&mut self, commits: Vec<Commit>, syncs: Vec<Sync>) {
        if commits.is_empty() && syncs.is_empty() {
            return;
        }
        match self.lane.commit(&commits, !syncs.is_empty(), LOCK_TIMEOUT).await {
            Err(CommitError::Rejected(error) | CommitError::LockTimeout(error))
                if commits.len() + syncs.len() > 1 =>
            {
                tracing::debug!(%error, batches = commits.len(), "group rejected, committing one by one");
                self.serve_one_by_one(commits, syncs).await;
            }
            outcome => _ = reply(outcome, commits, syncs),
        }
    }

    /// Commits the batches of a rejected group one by one. Batches that wait for a row lock come last.
    async fn serve_one_by_one(&mut self, commits: Vec<Commit>, syncs: Vec<Sync>) {
        let deadline = Instant::now() + self.lane.retry_timeout();
        let overloaded = || (Instant::now() > deadline).then(|| OVERLOADED.to_owned());
        // Once the server is unavailable, the remaining requests would time out as well.
        let (mut unavailable, mut locked) = (None::<String>, Vec::new());
        for commit in commits {
            unavailable = unavailable.or_else(overloaded);
            if let Some(reason) = &unavailable {
                _ = commit.reply.send(Err(unavailable_error(reason)));
                continue;
            }
            match self.lane.commit(std::slice::from_ref(&commit), false, SHORT_LOCK_TIMEOUT).await {
                Err(CommitError::LockTimeout(_)) => locked.push(commit),
                outcome => unavailable = reply(outcome, vec![commit], Vec::new()),
            }
        }
        for commit in locked {
            if let Some(reason) = unavailable.clone().or_else(overloaded) {
                _ = commit.reply.send(Err(unavailable_error(&reason)));
                continue;
            }
            let outcome = self.lane.commit(std::slice::from_ref(&commit), false, LOCK_TIMEOUT).await;
            unavailable = reply(outcome, vec![commit], Vec::new());
        }
        for sync in syncs {
            if let Some(reason) = &unavailable {
                _ = sync.reply.send(Err(unavailable_error(reason)));
                continue;
            }
            let outcome = self.lane.commit(&[], true, LOCK_TIMEOUT).await;
            unavailable = reply(outcome, Vec::new(), vec![sync]);
        }
    }
}

/// Replies to the callers of a group. Returns the reason if the server is unavailable.
fn reply(
    outcome: Result<Vec<Verdict>, CommitError>,
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
) -> Option<String> {
    match outcome {
        Ok(verdicts) => {
            for (commit, verdict) in commits.into_iter().zip(verdicts) {
                let applied = verdict == Verdict::Applied;
                let _ = commit.reply.send(if applied { Ok(()) } else { Err(StorageError::Conflict) });
            }
            for sync in syncs {
                let _ = sync.reply.send(Ok(()));
            }
            None
        }
        Err(CommitError::Rejected(error) | CommitError::LockTimeout(error)) => {
            fail_all(&error, commits, syncs);
            None
        }
        Err(CommitError::Unavailable(error)) => {
            fail_all(&error, commits, syncs);
            Some(error.to_string())
        }
        Err(CommitError::Unknown(reason, verdicts)) => {
            for (commit, verdict) in commits.into_iter().zip(verdicts) {
                let _ = commit.reply.send(Err(match verdict {
                    Verdict::Applied => StorageError::Indeterminate { source: reason.clone().into() },
                    Verdict::Conflict => StorageError::Conflict,
                    // It is a conflict only if the earlier batches are applied.
                    Verdict::ConflictInGroup => unavailable_error(&reason),
                }));
            }
            for sync in syncs {
                let _ = sync.reply.send(Err(unavailable_error(&reason)));
            }
            Some(reason)
        }
    }
}

fn fail_all(error: &StorageError, commits: Vec<Commit>, syncs: Vec<Sync>) {
    let replies = commits.into_iter().map(|commit| commit.reply);
    for reply in replies.chain(syncs.into_iter().map(|sync| sync.reply)) {
        let _ = reply.send(Err(copy(error)));
    }
}

fn unavailable_error(reason: &str) -> StorageError {
    StorageError::Unavailable { reason: reason.to_owned() }
}

/// Copies an error for another caller.
fn copy(error: &StorageError) -> StorageError {
    match error {
        StorageError::Unavailable { reason } => StorageError::Unavailable { reason: reason.clone() },
        StorageError::Locked { path } => StorageError::Locked { path: path.clone() },
        StorageError::Full { source } => StorageError::Full { source: source.to_string().into() },
        other => StorageError::backend("commit", other.to_string()),
    }
}
