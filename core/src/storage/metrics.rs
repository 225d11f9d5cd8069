//! Metrics of a storage: latencies by operation, and failures by kind.

use super::error::StorageError;
use super::value::Durability;
use crate::metrics::{Counter, Durations, Gauge, Histogram};

/// A kind of call with its own latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Storage::get`](super::Storage::get).
    Get,
    /// [`Storage::scan`](super::Storage::scan).
    Scan,
    /// [`Storage::commit`](super::Storage::commit) with [`Durability::Buffered`].
    BufferedCommit,
    /// [`Storage::commit`](super::Storage::commit) with [`Durability::Durable`].
    DurableCommit,
    /// [`Storage::sync`](super::Storage::sync).
    Sync,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 5] = [Self::Get, Self::Scan, Self::BufferedCommit, Self::DurableCommit, Self::Sync];

    pub(super) const fn commit(durability: Durability) -> Self {
        match durability {
            Durability::Buffered => Self::BufferedCommit,
            Durability::Durable => Self::DurableCommit,
        }
    }

    /// The name of the operation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Scan => "scan",
            Self::BufferedCommit => "buffered_commit",
            Self::DurableCommit => "durable_commit",
            Self::Sync => "sync",
        }
    }
}

/// The names of the kinds of failures.
const FAILURES: [&str; 5] = ["full", "indeterminate", "unavailable", "corrupt", "other"];

/// Returns the kind of a failure. `None` for errors that are outcomes and not failures of the storage.
pub(super) const fn failure_kind(error: &StorageError) -> Option<usize> {
    Some(match error {
        StorageError::Conflict
        | StorageError::InvalidKey { .. }
        | StorageError::TooLarge { .. }
        | StorageError::Closed => return None,
        StorageError::Full { .. } => 0,
        StorageError::Indeterminate { .. } => 1,
        StorageError::Unavailable { .. } => 2,
        StorageError::Corrupt { .. } => 3,
        _ => 4,
    })
}

/// The metrics of a storage, since it was opened.
#[derive(Debug, Default)]
pub struct StorageMetrics {
    pub(super) latencies: [Histogram; Operation::ALL.len()],
    pub(super) failures: [Counter; FAILURES.len()],
    pub(super) conflicts: Counter,
    pub(super) pending: Gauge,
}

impl StorageMetrics {
    /// Returns the latencies of an operation, whatever its outcome, including retries.
    pub fn latencies(&self, operation: Operation) -> Durations {
        self.latencies[operation as usize].read()
    }

    /// Returns the number of failures of each kind.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        FAILURES.into_iter().zip(self.failures.iter().map(Counter::get))
    }

    /// Returns the number of commits with a condition that did not hold.
    pub fn conflicts(&self) -> u64 {
        self.conflicts.get()
    }

    /// Returns the number of calls in progress, most of which wait in a queue.
    pub fn pending(&self) -> u64 {
        self.pending.get()
    }
}
