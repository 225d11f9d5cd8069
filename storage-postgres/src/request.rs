//! What the committing task is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub(crate) type Reply = oneshot::Sender<Result<(), StorageError>>;

pub(crate) enum Request {
    Commit(Commit),
    Sync(Sync),
    /// The last request that is served.
    Close(Reply),
}

/// A batch that waits, with its place in the queue.
pub(crate) struct Commit {
    pub(crate) batch: Batch,
    pub(crate) durability: Durability,
    pub(crate) turn: Turn,
    pub(crate) reply: Reply,
    pub(crate) _places: [OwnedSemaphorePermit; 2],
}

/// A sync that waits, with its place in the queue.
pub(crate) struct Sync {
    pub(crate) turn: Turn,
    pub(crate) reply: Reply,
    pub(crate) _place: OwnedSemaphorePermit,
}

/// Whose turn it is: the task takes a request, or the caller takes it back because it has waited for too long. Whoever is
/// first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn(Arc<AtomicBool>);

impl Turn {
    /// Says whether this call was the first.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}
