//! The writer thread: it owns the engine, gathers what is queued into groups, and answers every caller.
//!
//! ```text
//!            opened                failed commit or sync, panic
//! (start) ------------> Up ---------------------------------------> Down
//!                        ^                                            | pause (doubles)
//!                        +---------------- opened -------------------+
//! ```
//! While it is down, commits and syncs are answered `Unavailable`. A close is taken in either state.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::pool::Pool;
use super::settings::EmbeddedSettings;
use super::shared_error::{FailedSync, Panicked, SharedError, guarded};
use crate::storage::engine::{ApplyError, Engine, Reader};
use crate::storage::error::{Source, StorageError};
use crate::storage::value::{Batch, Condition, Durability, Key, Limits, Space, Write};

type Reply = oneshot::Sender<Result<(), StorageError>>;

/// What the writer is asked for.
pub(super) enum Request {
    Commit(Commit),
    Sync(Sync),
    /// A reader panicked.
    Failed(Panicked),
    /// The last request that is served.
    Close(Sender<Result<(), StorageError>>),
}

/// A batch that waits, with its place in the queue.
pub(super) struct Commit {
    pub(super) batch: Batch,
    pub(super) durability: Durability,
    pub(super) reply: Reply,
    pub(super) _places: [OwnedSemaphorePermit; 2],
}

/// A sync that waits, with its place in the queue.
pub(super) struct Sync {
    pub(super) reply: Reply,
    pub(super) _place: OwnedSemaphorePermit,
}

/// Opens the engine; called again after each failure.
pub(super) type Opener<E> = Box<dyn Fn() -> Result<E, StorageError> + Send + std::marker::Sync>;

enum State<E: Engine> {
    Up { engine: E, reader: E::Reader },
    Down { reason: String, retry_at: Instant, dropped: Receiver<()> },
}

/// What was queued when the writer came to look.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
    failed: Option<Panicked>,
    close: Option<Sender<Result<(), StorageError>>>,
}

pub(super) struct Writer<E: Engine> {
    settings: EmbeddedSettings,
    opener: Opener<E>,
    requests: Receiver<Request>,
    pool: Arc<Pool<E::Reader>>,
    state: State<E>,
    /// The pause before the next attempt to reopen.
    pause: Duration,
}

impl<E: Engine> Writer<E> {
    /// Opens the engine for the first time.
    pub(super) fn start(
        settings: EmbeddedSettings,
        opener: Opener<E>,
        requests: Receiver<Request>,
        pool: Arc<Pool<E::Reader>>,
    ) -> Result<(Self, Limits), StorageError> {
        let (engine, reader) = open(&opener, &pool)?;
        let limits =
            guarded(|| engine.limits()).map_err(|panicked| StorageError::backend("open", panicked))?;
        let pause = settings.reopen_first;
        Ok((Self { settings, opener, requests, pool, state: State::Up { engine, reader }, pause }, limits))
    }

    /// The life of the thread: ends with a close, or when the storage is gone.
    pub(super) fn run(mut self) {
        loop {
            let first = match &self.state {
                State::Up { .. } => self.requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                State::Down { retry_at, .. } => {
                    match retry_at.checked_duration_since(Instant::now()) {
                        Some(wait) if !wait.is_zero() => self.requests.recv_timeout(wait),
                        // Even where requests never cease to come.
                        _ => Err(RecvTimeoutError::Timeout),
                    }
                }
            };
            let group = match first {
                Ok(request) => self.gather(request),
                Err(RecvTimeoutError::Timeout) => {
                    self.reopen();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => Group::default(),
            };
            let last = group.close.is_some() || first_is_gone(&group);
            let Group { commits, syncs, failed, close } = group;
            self.serve(commits, syncs);
            if let Some(panicked) = failed {
                self.fail(panicked.into());
            }
            if last {
                let outcome = self.shut_down();
                if let Some(done) = close {
                    let _ = done.send(outcome);
                }
                return;
            }
        }
    }

    /// Takes what else is queued, as far as it fits into a group.
    fn gather(&self, first: Request) -> Group {
        let mut group = Group::default();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit(commit) => {
                    bytes += commit.batch.size();
                    group.commits.push(commit);
                }
                Request::Sync(sync) => group.syncs.push(sync),
                Request::Failed(panicked) => group.failed = Some(panicked),
                Request::Close(done) => group.close = Some(done),
            }
            let full = group.commits.len() + group.syncs.len() >= self.settings.group_batches
                || bytes >= self.settings.group_bytes;
            if full || group.close.is_some() || group.failed.is_some() {
                break;
            }
            next = self.requests.try_recv().ok();
        }
        group
    }

    fn serve(&mut self, commits: Vec<Commit>, syncs: Vec<Sync>) {
        let State::Up { engine, reader } = &mut self.state else {
            self.refuse(commits, syncs);
            return;
        };
        let outcome = commit_group(engine, reader, commits, syncs);
        match outcome {
            Ok(true) => self.pause = self.settings.reopen_first,
            Ok(false) => {}
            Err(Failure { source, commits, syncs }) => {
                self.fail(source);
                self.refuse(commits, syncs);
            }
        }
    }

    fn refuse(&self, commits: Vec<Commit>, syncs: Vec<Sync>) {
        let State::Down { reason, .. } = &self.state else { return };
        let replies =
            commits.into_iter().map(|commit| commit.reply).chain(syncs.into_iter().map(|sync| sync.reply));
        for reply in replies {
            let _ = reply.send(Err(StorageError::Unavailable { reason: reason.clone() }));
        }
    }

    /// Drops the engine, to be opened anew after a pause.
    fn fail(&mut self, source: Source) {
        let reason = format!("it failed and is being reopened ({source})");
        tracing::warn!(storage = self.settings.name, error = %source, "the storage failed; it is reopened");
        self.pool.take_down(&reason, self.settings.close_timeout);
        let (dropped_sender, dropped) = std::sync::mpsc::channel();
        let retry_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(self.settings.reopen_longest);
        let failed = std::mem::replace(&mut self.state, State::Down { reason, retry_at, dropped });
        // An engine may hang as it goes. That must not keep callers from their answers.
        let drop_it = move || {
            let _ = guarded(|| drop(failed));
            let _ = dropped_sender.send(());
        };
        let name = format!("{}-drop", self.settings.name);
        if let Err(error) = std::thread::Builder::new().name(name).spawn(drop_it) {
            tracing::warn!(%error, "no thread to drop the failed storage on; it was dropped in place");
        }
    }

    fn reopen(&mut self) {
        let State::Down { reason, retry_at, dropped } = &mut self.state else { return };
        let outcome = match dropped.try_recv() {
            Err(std::sync::mpsc::TryRecvError::Empty) => {
                Err(StorageError::Unavailable { reason: "the failed engine has not gone yet".to_owned() })
            }
            // Done; or done in place.
            Ok(()) | Err(std::sync::mpsc::TryRecvError::Disconnected) => open(&self.opener, &self.pool),
        };
        match outcome {
            Ok((engine, reader)) => {
                tracing::info!(storage = self.settings.name, "the storage is open again");
                self.state = State::Up { engine, reader };
            }
            Err(error) => {
                tracing::warn!(storage = self.settings.name, %error, "the storage cannot be reopened yet");
                *reason = format!("it cannot be reopened yet ({error})");
                *retry_at = Instant::now() + self.pause;
                self.pool.take_down(reason, Duration::ZERO);
                self.pause = (self.pause * 2).min(self.settings.reopen_longest);
            }
        }
    }

    fn shut_down(self) -> Result<(), StorageError> {
        self.pool.close(self.settings.close_timeout / 2);
        match self.state {
            State::Up { engine, reader } => guarded(move || {
                drop(reader);
                engine.close()
            })
            .unwrap_or_else(|panicked| Err(StorageError::backend("close", panicked))),
            State::Down { reason, .. } => Err(StorageError::Unavailable { reason }),
        }
    }
}

/// Nothing was received: nobody can send any more.
fn first_is_gone(group: &Group) -> bool {
    group.commits.is_empty() && group.syncs.is_empty() && group.failed.is_none()
}

/// Opens the engine and gives the pool its readers.
fn open<E: Engine>(opener: &Opener<E>, pool: &Pool<E::Reader>) -> Result<(E, E::Reader), StorageError> {
    guarded(|| {
        let engine = opener()?;
        let reader = engine.reader()?;
        let readers = (0..pool.threads()).map(|_| engine.reader()).collect::<Result<_, _>>()?;
        pool.bring_up(readers);
        Ok((engine, reader))
    })
    .unwrap_or_else(|panicked| Err(StorageError::backend("open", panicked)))
}

/// The engine failed and must go. What was not answered yet was not applied.
struct Failure {
    source: Source,
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
}

/// What the earlier batches of a group change.
type Overlay = HashMap<(Space, Key), Option<Bytes>>;

/// A commit of a group that is not answered yet.
struct Member {
    commit: Commit,
    /// Which of the group's writes are its own.
    writes: Range<usize>,
    /// It conflicts with a batch before it in the group. If that one is not applied, it may hold after all.
    conflicts: bool,
}

/// Whether the conditions of a batch hold.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Hold,
    Conflict,
    ConflictInGroup,
}

/// Commits a group and answers it; says whether the engine wrote something without failing.
fn commit_group<E: Engine>(
    engine: &mut E,
    reader: &mut E::Reader,
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
) -> Result<bool, Failure> {
    // Later batches must see the earlier ones only where they ask.
    let overlaid = commits.iter().skip(1).any(|commit| !commit.batch.conditions.is_empty());
    let mut overlay = Overlay::new();
    let mut writes = Vec::new();
    let mut members: Vec<Member> = Vec::new();
    let mut waiting = commits.into_iter();
    while let Some(mut commit) = waiting.next() {
        let verdict = match guarded(|| check(reader, &overlay, &commit.batch.conditions)) {
            Ok(Ok(Verdict::Conflict)) => {
                let _ = commit.reply.send(Err(StorageError::Conflict));
                continue;
            }
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => {
                let _ = commit.reply.send(Err(error));
                continue;
            }
            Err(panicked) => {
                let commits = members.into_iter().map(|member| member.commit);
                let commits = commits.chain([commit]).chain(waiting).collect();
                return Err(Failure { source: panicked.into(), commits, syncs });
            }
        };
        let start = writes.len();
        let conflicts = verdict == Verdict::ConflictInGroup;
        if !conflicts {
            if overlaid {
                for write in &commit.batch.writes {
                    let (space, key) = write.target();
                    overlay.insert((space, key.clone()), write.value().cloned());
                }
            }
            writes.append(&mut commit.batch.writes);
        }
        members.push(Member { commit, writes: start..writes.len(), conflicts });
    }
    let strongest = members.iter().filter(|member| !member.conflicts).map(|member| member.commit.durability);
    let durable = !syncs.is_empty() || strongest.max() == Some(Durability::Durable);
    if writes.is_empty() {
        if durable {
            sync_for(engine, members, syncs)?;
        } else {
            acknowledge(members, syncs);
        }
        return Ok(durable);
    }
    let durability = if durable { Durability::Durable } else { Durability::Buffered };
    match apply(engine, &writes, durability) {
        Ok(()) => {
            acknowledge(members, syncs);
            Ok(true)
        }
        Err(ApplyError::Refused(error)) => {
            if members.len() > 1 {
                return commit_one_by_one(engine, reader, members, writes, syncs);
            }
            if let Some(member) = members.pop() {
                let _ = member.commit.reply.send(Err(error));
            }
            if !syncs.is_empty() {
                sync_for(engine, Vec::new(), syncs)?;
            }
            Ok(false)
        }
        Err(ApplyError::Uncertain(source)) => {
            let shared = SharedError::new(source);
            let (undecided, lost): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|member| member.conflicts);
            for member in lost {
                let _ = member.commit.reply.send(Err(indeterminate(&shared)));
            }
            let commits = undecided.into_iter().map(|member| member.commit).collect();
            Err(Failure { source: shared.into(), commits, syncs })
        }
    }
}

/// After the group as a whole was refused: each batch that can be applied is.
fn commit_one_by_one<E: Engine>(
    engine: &mut E,
    reader: &mut E::Reader,
    members: Vec<Member>,
    writes: Vec<Write>,
    syncs: Vec<Sync>,
) -> Result<bool, Failure> {
    let mut applied = false;
    let mut waiting = members.into_iter();
    while let Some(Member { commit, writes: own, conflicts }) = waiting.next() {
        let own = if conflicts { &commit.batch.writes[..] } else { &writes[own] };
        let (shared, untouched) = match guarded(|| check(reader, &Overlay::new(), &commit.batch.conditions)) {
            Err(panicked) => (SharedError::new(panicked.into()), true),
            Ok(Err(error)) => {
                let _ = commit.reply.send(Err(error));
                continue;
            }
            Ok(Ok(Verdict::Conflict | Verdict::ConflictInGroup)) => {
                let _ = commit.reply.send(Err(StorageError::Conflict));
                continue;
            }
            Ok(Ok(Verdict::Hold)) => match apply(engine, own, commit.durability) {
                Ok(()) => {
                    applied = true;
                    let _ = commit.reply.send(Ok(()));
                    continue;
                }
                Err(ApplyError::Refused(error)) => {
                    let _ = commit.reply.send(Err(error));
                    continue;
                }
                Err(ApplyError::Uncertain(source)) => (SharedError::new(source), false),
            },
        };
        let rest = waiting.map(|member| member.commit);
        let commits = if untouched {
            std::iter::once(commit).chain(rest).collect()
        } else {
            let _ = commit.reply.send(Err(indeterminate(&shared)));
            rest.collect()
        };
        return Err(Failure { source: shared.into(), commits, syncs });
    }
    if !syncs.is_empty() {
        sync_for(engine, Vec::new(), syncs)?;
    }
    Ok(applied)
}

/// Whether all conditions hold, seen through the writes of earlier batches.
fn check(
    reader: &mut impl Reader,
    overlay: &Overlay,
    conditions: &[Condition],
) -> Result<Verdict, StorageError> {
    let mut verdict = Verdict::Hold;
    for condition in conditions {
        let (space, key, expected) = match condition {
            Condition::Absent(space, key) => (*space, key, None),
            Condition::Equals(space, key, value) => (*space, key, Some(value)),
        };
        let pending = if overlay.is_empty() { None } else { overlay.get(&(space, key.clone())) };
        match pending {
            Some(value) if value.as_ref() != expected => verdict = Verdict::ConflictInGroup,
            Some(_) => {}
            // Nothing in the group has to do with it.
            None if reader.get(space, key)?.as_ref() != expected => return Ok(Verdict::Conflict),
            None => {}
        }
    }
    Ok(verdict)
}

fn apply<E: Engine>(engine: &mut E, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
    if writes.is_empty() {
        return match durability {
            Durability::Buffered => Ok(()),
            Durability::Durable => match guarded(|| engine.sync()) {
                Ok(outcome) => outcome.map_err(|error| ApplyError::Uncertain(error.into())),
                Err(panicked) => Err(ApplyError::Uncertain(panicked.into())),
            },
        };
    }
    guarded(|| engine.apply(writes, durability))
        .unwrap_or_else(|panicked| Err(ApplyError::Uncertain(panicked.into())))
}

/// Makes everything durable and answers those who waited only for that.
fn sync_for<E: Engine>(engine: &mut E, members: Vec<Member>, syncs: Vec<Sync>) -> Result<(), Failure> {
    let outcome = guarded(|| engine.sync())
        .unwrap_or_else(|panicked| Err(StorageError::backend("make everything durable", panicked)));
    let Err(error) = outcome else {
        acknowledge(members, syncs);
        return Ok(());
    };
    let failed = FailedSync::new(error);
    for member in members {
        let _ = member.commit.reply.send(Err(failed.error()));
    }
    for sync in syncs {
        let _ = sync.reply.send(Err(failed.error()));
    }
    Err(Failure { source: failed.error().into(), commits: Vec::new(), syncs: Vec::new() })
}

fn acknowledge(members: Vec<Member>, syncs: Vec<Sync>) {
    for member in members {
        let outcome = if member.conflicts { Err(StorageError::Conflict) } else { Ok(()) };
        let _ = member.commit.reply.send(outcome);
    }
    for sync in syncs {
        let _ = sync.reply.send(Ok(()));
    }
}

fn indeterminate(error: &SharedError) -> StorageError {
    StorageError::Indeterminate { source: error.clone().into() }
}
