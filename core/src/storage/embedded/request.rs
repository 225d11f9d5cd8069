//! Requests to the writer thread, with their permits.

use std::sync::mpsc::Sender;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::pool::FailedRead;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};

pub(super) type Reply = oneshot::Sender<Result<(), StorageError>>;

/// A request to the writer thread.
pub(super) enum Request {
    Commit(Commit),
    Sync(Sync),
    /// A reader failed or panicked.
    Failed(FailedRead),
    /// The last request.
    Close(Sender<Result<(), StorageError>>),
}

/// A queued batch.
pub(super) struct Commit {
    pub(super) batch: Batch,
    pub(super) durability: Durability,
    pub(super) reply: Reply,
    pub(super) _permits: [OwnedSemaphorePermit; 2],
}

/// A queued sync.
pub(super) struct Sync {
    pub(super) reply: Reply,
    pub(super) _permit: OwnedSemaphorePermit,
}
