//! Group commit.
//!
//! The conditions of a batch observe the preceding batches of its group. If the engine refuses a group, its batches are applied one
//! by one, so that each fails alone. If the outcome of a group is unknown, it is unknown for each of its batches.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::guarded::guarded;
use crate::storage::engine::{ApplyError, Engine, ReadError, Reader};
use crate::storage::error::{Source, StorageError};
use crate::storage::value::{Batch, Condition, Durability, Key, Space, Write};

pub(super) type Reply = oneshot::Sender<Result<(), StorageError>>;

/// A queued batch. A sync is a durable commit of an empty batch.
pub(super) struct Commit {
    pub(super) batch: Batch,
    pub(super) durability: Durability,
    pub(super) reply: Reply,
    pub(super) _permits: [OwnedSemaphorePermit; 2],
}

/// The engine failed and must be reopened. Batches in `commits` were not applied.
pub(super) struct Failure {
    pub(super) source: Source,
    /// Replies to send after the failed engine is out of use.
    pub(super) replies: Vec<(Reply, StorageError)>,
    pub(super) commits: Vec<Commit>,
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

impl Member {
    fn is_sync(&self) -> bool {
        self.writes.is_empty() && self.commit.batch.conditions.is_empty()
    }
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
                return Err(Failure { source, replies: Vec::new(), commits });
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
    let durability = strongest.max().unwrap_or(Durability::Buffered);
    if writes.is_empty() {
        if durability == Durability::Durable {
            sync_for(engine, members)?;
        } else {
            acknowledge(members);
        }
        return Ok(());
    }
    let outcome = guarded(|| engine.apply(&writes, durability))
        .unwrap_or_else(|panicked| Err(ApplyError::Uncertain(panicked.into())));
    match outcome {
        Ok(()) => {
            acknowledge(members);
            Ok(())
        }
        Err(ApplyError::Refused(_)) if members.len() > 1 => {
            commit_one_by_one(engine, reader, members, &writes)
        }
        Err(ApplyError::Refused(error)) => {
            if let Some(member) = members.pop() {
                let _ = member.commit.reply.send(Err(error));
            }
            Ok(())
        }
        Err(ApplyError::Uncertain(source)) => {
            let (lost, unaffected): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|member| !member.conflicts && !member.is_sync());
            let indeterminate = StorageError::Indeterminate { source: source.clone() };
            let replies = lost.into_iter().map(|member| (member.commit.reply, indeterminate.clone()));
            let commits = unaffected.into_iter().map(|member| member.commit).collect();
            Err(Failure { source, replies: replies.collect(), commits })
        }
    }
}

/// Returns the spaces with conditions of all batches except the first.
fn conditional_spaces(commits: &[Commit]) -> Vec<Space> {
    let mut spaces = Vec::new();
    for condition in commits.iter().skip(1).flat_map(|commit| &commit.batch.conditions) {
        let (space, _) = condition.target();
        if !spaces.contains(&space) {
            spaces.push(space);
        }
    }
    spaces
}

/// Commits the batches of a refused group one by one.
fn commit_one_by_one<E: Engine>(
    engine: &mut E,
    reader: &mut E::Reader,
    members: Vec<Member>,
    writes: &[Write],
) -> Result<(), Failure> {
    let mut pending = members.into_iter().map(|Member { mut commit, writes: own, .. }| {
        commit.batch.writes.extend_from_slice(&writes[own]);
        commit
    });
    while let Some(commit) = pending.next() {
        if let Err(mut failure) = commit_group(engine, reader, vec![commit]) {
            failure.commits.extend(pending);
            return Err(failure);
        }
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
        let ((space, key), expected) = (condition.target(), condition.value());
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

/// Syncs the engine and replies to commits without writes.
fn sync_for<E: Engine>(engine: &mut E, members: Vec<Member>) -> Result<(), Failure> {
    const ACTION: &str = "sync the database";
    let outcome =
        guarded(|| engine.sync()).unwrap_or_else(|panicked| Err(StorageError::backend(ACTION, panicked)));
    let Err(error) = outcome else {
        acknowledge(members);
        return Ok(());
    };
    let replies = members.into_iter().map(|member| {
        let error = if member.conflicts { StorageError::Conflict } else { error.clone() };
        (member.commit.reply, error)
    });
    let replies = replies.collect();
    Err(Failure { source: error.into(), replies, commits: Vec::new() })
}

fn acknowledge(members: Vec<Member>) {
    for member in members {
        let outcome = if member.conflicts { Err(StorageError::Conflict) } else { Ok(()) };
        let _ = member.commit.reply.send(outcome);
    }
}
