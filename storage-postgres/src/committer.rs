//! The task that commits: it gathers what is queued, and has it committed as one transaction.
//!
//! What the server refuses as a whole is tried batch by batch, so that a batch fails alone; only where what became of a
//! commit is not to be learnt in time, callers get `Indeterminate`.
//!
//! Where a process is one of many that write, it has two such tasks, each with a [`Lane`] of its own. The first one takes
//! everything in the order in which it was asked for, commits what need not be durable, and then hands on what must be. So
//! a publication that waits for a slow disk, or for a replica that is away, holds up no renewal. Who owns a schema writes
//! in one order.

use std::fs::File;
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::Durability;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::group::Verdict;
use crate::lane::{Failed, Lane};
use crate::request::{Commit, Reply, Request, Sync};
use crate::writer::RENEWAL;

/// How many batches are committed as one at most.
const GROUP_BATCHES: usize = 256;
/// From how many bytes on a group takes no more batches.
const GROUP_BYTES: usize = 16 * 1024 * 1024;

/// How long what need not be durable waits for somebody who holds what it needs.
const HELD: Duration = Duration::from_millis(500);
/// The same, while others wait behind it.
const GLANCE: Duration = Duration::from_millis(20);
/// Why a batch was not even tried.
const OTHERS: &str = "others before it were held up for too long";

/// What was queued when the task came to look.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
    /// What is for the other task, which comes behind the commits.
    handed_on: Vec<Request>,
    close: Option<Reply>,
}

/// How a task ended, for whoever asked it to.
struct Farewell {
    reply: Option<Reply>,
    outcome: Result<(), StorageError>,
}

impl Farewell {
    fn tell(self) {
        match (self.reply, self.outcome) {
            (Some(reply), outcome) => _ = reply.send(outcome),
            (None, Ok(())) => {}
            (None, Err(error)) => {
                tracing::warn!(storage = "postgres", %error, "the database was left without a goodbye");
            }
        }
    }
}

/// One of the tasks.
pub(crate) struct Committer {
    requests: UnboundedReceiver<Request>,
    lane: Lane,
    /// The task that commits what must be durable; none where this one does.
    durable: Option<UnboundedSender<Request>>,
    /// Held until the task ends.
    _lock: Option<File>,
}

impl Committer {
    /// Starts the task. What is returned becomes true when it has ended and let go of everything.
    pub(crate) fn start(
        lane: Lane,
        requests: UnboundedReceiver<Request>,
        lock: Option<File>,
    ) -> watch::Receiver<bool> {
        let durable = lane.beside().map(|lane| {
            let (durable, received) = unbounded_channel();
            let committer = Self { requests: received, lane, durable: None, _lock: None };
            tokio::spawn(async move { committer.run().await.tell() });
            durable
        });
        let committer = Self { requests, lane, durable, _lock: lock };
        let (ended, receiver) = watch::channel(false);
        tokio::spawn(async move {
            let farewell = committer.run().await;
            ended.send_replace(true);
            farewell.tell();
        });
        receiver
    }

    /// The life of the task: ends with a close, or when the storage is gone.
    async fn run(mut self) -> Farewell {
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
            let Group { commits, syncs, handed_on, close } = self.gather(first);
            self.serve(commits, syncs).await;
            if let Some(durable) = &self.durable {
                for request in handed_on {
                    // Where that task is gone, whoever asked sees that nobody takes it.
                    let _ = durable.send(request);
                }
            }
            if close.is_some() {
                break close;
            }
        };
        // Callers behind it see that nobody takes their requests.
        self.requests.close();
        let (told, durable) = oneshot::channel();
        if let Some(lane) = self.durable.take() {
            let _ = lane.send(Request::Close(told));
        } else {
            let _ = told.send(Ok(()));
        }
        let (own, durable) = tokio::join!(self.lane.finish(), durable);
        Farewell { reply, outcome: own.and(durable.unwrap_or(Ok(()))) }
    }

    fn gather(&mut self, first: Request) -> Group {
        let mut group = Group::default();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit(Commit { durability: Durability::Durable, .. }) | Request::Sync(_)
                    if self.durable.is_some() =>
                {
                    group.handed_on.push(request);
                }
                Request::Commit(commit) => {
                    if commit.turn.take() {
                        bytes += commit.batch.size();
                        group.commits.push(commit);
                    }
                }
                Request::Sync(sync) => {
                    if sync.turn.take() {
                        group.syncs.push(sync);
                    }
                }
                Request::Close(reply) => {
                    group.close = Some(reply);
                    break;
                }
            }
            let many = group.commits.len() >= GROUP_BATCHES || group.handed_on.len() >= GROUP_BATCHES;
            let full = many || bytes >= GROUP_BYTES;
            next = if full { None } else { self.requests.try_recv().ok() };
        }
        group
    }

    /// Commits a group and answers everybody in it. Gives the reason where the server is away.
    async fn serve(&mut self, commits: Vec<Commit>, syncs: Vec<Sync>) -> Option<String> {
        if commits.is_empty() && syncs.is_empty() {
            return None;
        }
        let outcome = self.lane.commit(&commits, !syncs.is_empty(), HELD).await;
        match outcome {
            Err(Failed::Refused(error) | Failed::Held(error)) if commits.len() + syncs.len() > 1 => {
                tracing::debug!(%error, batches = commits.len(), "a group was refused; one after the other");
                self.one_by_one(commits, syncs).await
            }
            outcome => answer(outcome, commits, syncs),
        }
    }

    /// Commits a group that was refused batch by batch. Those that somebody else holds up come last, and get little time.
    async fn one_by_one(&mut self, commits: Vec<Commit>, syncs: Vec<Sync>) -> Option<String> {
        let deadline = Instant::now() + self.lane.patience();
        let (mut away, mut held) = (None::<String>, Vec::new());
        for commit in commits {
            if away.is_none() && Instant::now() > deadline {
                away = Some(OTHERS.to_owned());
            }
            if let Some(reason) = &away {
                // Nothing of it was sent, and each would wait as long as the one before.
                _ = commit.reply.send(Err(unavailable(reason)));
                continue;
            }
            match self.lane.commit(std::slice::from_ref(&commit), false, GLANCE).await {
                Err(Failed::Held(_)) => held.push(commit),
                outcome => away = answer(outcome, vec![commit], Vec::new()),
            }
        }
        for commit in held {
            match &away {
                Some(reason) => _ = commit.reply.send(Err(unavailable(reason))),
                None if Instant::now() > deadline => _ = commit.reply.send(Err(unavailable(OTHERS))),
                None => {
                    let outcome = self.lane.commit(std::slice::from_ref(&commit), false, HELD).await;
                    away = answer(outcome, vec![commit], Vec::new());
                }
            }
        }
        for sync in syncs {
            match &away {
                Some(reason) => _ = sync.reply.send(Err(unavailable(reason))),
                None => {
                    let outcome = self.lane.commit(&[], true, HELD).await;
                    away = answer(outcome, Vec::new(), vec![sync]);
                }
            }
        }
        away
    }
}

/// Answers everybody in a group, which is one alone where it was refused. Gives the reason where the server is away.
fn answer(outcome: Result<Vec<Verdict>, Failed>, commits: Vec<Commit>, syncs: Vec<Sync>) -> Option<String> {
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
        Err(Failed::Refused(error) | Failed::Held(error)) => {
            refuse(&error, commits, syncs);
            None
        }
        Err(Failed::Away(error)) => {
            refuse(&error, commits, syncs);
            Some(error.to_string())
        }
        Err(Failed::Unknown(reason, verdicts)) => {
            for (commit, verdict) in commits.into_iter().zip(verdicts) {
                let _ = commit.reply.send(Err(match verdict {
                    Verdict::Applied => StorageError::Indeterminate { source: reason.clone().into() },
                    Verdict::Conflict => StorageError::Conflict,
                    // Only if the ones before it are applied.
                    Verdict::ConflictInGroup => unavailable(&reason),
                }));
            }
            for sync in syncs {
                let _ = sync.reply.send(Err(unavailable(&reason)));
            }
            Some(reason)
        }
    }
}

fn refuse(error: &StorageError, commits: Vec<Commit>, syncs: Vec<Sync>) {
    let replies = commits.into_iter().map(|commit| commit.reply);
    for reply in replies.chain(syncs.into_iter().map(|sync| sync.reply)) {
        let _ = reply.send(Err(copy(error)));
    }
}

fn unavailable(reason: &str) -> StorageError {
    StorageError::Unavailable { reason: reason.to_owned() }
}

/// The same error for another caller.
fn copy(error: &StorageError) -> StorageError {
    match error {
        StorageError::Unavailable { reason } => StorageError::Unavailable { reason: reason.clone() },
        StorageError::Locked { path } => StorageError::Locked { path: path.clone() },
        StorageError::Full { source } => StorageError::Full { source: source.to_string().into() },
        other => StorageError::backend("commit", other.to_string()),
    }
}
