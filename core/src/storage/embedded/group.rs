//! Group commit.
//!
//! The conditions of a batch observe the preceding batches of its group. If the engine refuses a group, its batches are applied one
//! by one, so that each fails alone. If the outcome of a group is unknown, it is unknown for each of its batches.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use super::request::{Commit, Reply, Sync};
use super::shared_error::{FailedSync, SharedError, guarded};
use crate::storage::engine::{ApplyError, Engine, ReadError, Reader};
use crate::storage::error::{Source, StorageError};
use crate::storage::value::{Condition, Durability, Key, Space, Write};

/// The engine failed and must be reopened. Batches in `commits` were not applied.
pub(super) struct Failure {
    pub(super) source: Source,
    /// Replies to send after the failed engine is out of use.
    pub(super) replies: Vec<(Reply, StorageError)>,
    pub(super) commits: Vec<Commit>,
    pub(super) syncs: Vec<Sync>,
}

/// The values written by the preceding batches of a group.
type Overlay = HashMap<(Space, Key), Option<Bytes>>;

/// A pending commit of a group.
struct Member {
    commit: Commit,
    /// Its range in the writes of the group.
    writes: Range<usize>,
    /// Whether it conflicts with a preceding batch of the group. If that one is not applied, its conditions may hold.
    conflicts: bool,
}

/// The result of the conditions of a batch.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Hold,
    Conflict,
    ConflictInGroup,
}

/// Commits a group and replies to its callers.
pub(super) fn commit_group<E: Engine>(
    engine: &mut E,
    reader: &mut E::Reader,
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
) -> Result<(), Failure> {
    // Only writes to spaces with conditions have to be in the overlay.
    let conditional = conditional_spaces(&commits);
    let mut overlay = Overlay::new();
    let mut writes = Vec::new();
    let mut members: Vec<Member> = Vec::new();
    let mut pending = commits.into_iter();
    while let Some(mut commit) = pending.next() {
        let verdict = match check(reader, &overlay, &commit.batch.conditions) {
            Ok(Verdict::Conflict) => {
                let _ = commit.reply.send(Err(StorageError::Conflict));
                continue;
            }
            Ok(verdict) => verdict,
            Err(ReadError::Failed(error)) => {
                let _ = commit.reply.send(Err(error));
                continue;
            }
            Err(ReadError::Broken(source)) => {
                let commits = members.into_iter().map(|member| member.commit);
                let commits = commits.chain([commit]).chain(pending).collect();
                return Err(Failure { source, replies: Vec::new(), commits, syncs });
            }
        };
        let start = writes.len();
        let conflicts = verdict == Verdict::ConflictInGroup;
        if !conflicts {
            let observed = commit.batch.writes.iter().filter(|write| conditional.contains(&write.target().0));
            for write in observed {
                let (space, key) = write.target();
                overlay.insert((space, key.clone()), write.value().cloned());
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
        return Ok(());
    }
    let durability = if durable { Durability::Durable } else { Durability::Buffered };
    match apply(engine, &writes, durability) {
        Ok(()) => {
            acknowledge(members, syncs);
            Ok(())
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
            Ok(())
        }
        Err(ApplyError::Uncertain(source)) => {
            let shared = SharedError::new(source);
            let (undecided, lost): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|member| member.conflicts);
            let replies =
                lost.into_iter().map(|member| (member.commit.reply, indeterminate(&shared))).collect();
            let commits = undecided.into_iter().map(|member| member.commit).collect();
            Err(Failure { source: shared.into(), replies, commits, syncs })
        }
    }
}

/// Returns the spaces with conditions of all batches except the first.
fn conditional_spaces(commits: &[Commit]) -> Vec<Space> {
    let mut spaces = Vec::new();
    for condition in commits.iter().skip(1).flat_map(|commit| &commit.batch.conditions) {
        let (Condition::Absent(space, _) | Condition::Equals(space, ..)) = condition;
        if !spaces.contains(space) {
            spaces.push(*space);
        }
    }
    spaces
}

/// Applies the batches of a refused group one by one.
fn commit_one_by_one<E: Engine>(
    engine: &mut E,
    reader: &mut E::Reader,
    members: Vec<Member>,
    writes: Vec<Write>,
    syncs: Vec<Sync>,
) -> Result<(), Failure> {
    let mut pending = members.into_iter();
    while let Some(Member { commit, writes: own, conflicts }) = pending.next() {
        let own = if conflicts { &commit.batch.writes[..] } else { &writes[own] };
        let (shared, nothing_applied) = match check(reader, &Overlay::new(), &commit.batch.conditions) {
            Err(ReadError::Broken(source)) => (SharedError::new(source), true),
            Err(ReadError::Failed(error)) => {
                let _ = commit.reply.send(Err(error));
                continue;
            }
            Ok(Verdict::Conflict | Verdict::ConflictInGroup) => {
                let _ = commit.reply.send(Err(StorageError::Conflict));
                continue;
            }
            Ok(Verdict::Hold) => match apply(engine, own, commit.durability) {
                Ok(()) => {
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
        let rest = pending.map(|member| member.commit);
        let (commits, replies) = if nothing_applied {
            (std::iter::once(commit).chain(rest).collect(), Vec::new())
        } else {
            (rest.collect(), vec![(commit.reply, indeterminate(&shared))])
        };
        return Err(Failure { source: shared.into(), replies, commits, syncs });
    }
    if !syncs.is_empty() {
        sync_for(engine, Vec::new(), syncs)?;
    }
    Ok(())
}

/// Checks all conditions against the overlay and the state. A reader that panics is broken.
fn check(
    reader: &mut impl Reader,
    overlay: &Overlay,
    conditions: &[Condition],
) -> Result<Verdict, ReadError> {
    guarded(|| evaluate(reader, overlay, conditions))
        .unwrap_or_else(|panicked| Err(ReadError::Broken(panicked.into())))
}

fn evaluate(
    reader: &mut impl Reader,
    overlay: &Overlay,
    conditions: &[Condition],
) -> Result<Verdict, ReadError> {
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

/// Syncs the engine and replies to syncs and to commits without writes.
fn sync_for<E: Engine>(engine: &mut E, members: Vec<Member>, syncs: Vec<Sync>) -> Result<(), Failure> {
    let outcome = guarded(|| engine.sync())
        .unwrap_or_else(|panicked| Err(StorageError::backend("sync the database", panicked)));
    let Err(error) = outcome else {
        acknowledge(members, syncs);
        return Ok(());
    };
    let failed = FailedSync::new(error);
    let replies = members.into_iter().map(|member| {
        let error = if member.conflicts { StorageError::Conflict } else { failed.error() };
        (member.commit.reply, error)
    });
    let replies = replies.chain(syncs.into_iter().map(|sync| (sync.reply, failed.error())));
    Err(Failure {
        source: failed.error().into(),
        replies: replies.collect(),
        commits: Vec::new(),
        syncs: Vec::new(),
    })
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
