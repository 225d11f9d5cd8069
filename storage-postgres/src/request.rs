//! The requests to the commit task.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use enjambre_core::{Batch, Durability, StorageError};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub(crate) type Reply = oneshot::Sender<Result<(), StorageError>>;

pub(crate) enum Request {
    Commit(Commit),
    Sync(Sync),
    /// The last request that is processed.
    Close(Reply),
}

/// A queued batch.
pub(crate) struct Commit {
    pub(crate) batch: Batch,
    pub(crate) durability: Durability,
    pub(crate) ticket: Ticket,
    pub(crate) reply: Reply,
    pub(crate) _permits: [OwnedSemaphorePermit; 2],
}

/// A queued sync.
pub(crate) struct Sync {
    pub(crate) ticket: Ticket,
    pub(crate) reply: Reply,
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// Decides between the commit task, which starts a request, and its caller, which withdraws it after a timeout.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// Returns whether this call was the first.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}
