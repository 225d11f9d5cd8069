//! What the writer is asked for, with the places in the queue that it takes.

use std::sync::mpsc::Sender;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::pool::FailedRead;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};

pub(super) type Reply = oneshot::Sender<Result<(), StorageError>>;

/// What the writer is asked for.
pub(super) enum Request {
    Commit(Commit),
    Sync(Sync),
    /// A reader is broken or panicked.
    Failed(FailedRead),
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
