//! Errors of the download queue.

use crate::library::error::LibraryError;
use enjambre_core::{FileId, StorageError};

/// Maximum number of entries that are not finished.
pub const MAX_PENDING: usize = 1000;

/// The result of an operation of the queue.
pub type Result<T, E = QueueError> = std::result::Result<T, E>;

/// An error of the download queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// No download has this name, id or prefix of an id.
    #[error("no download matches {0:?}")]
    NotFound(String),
    /// Several downloads have this prefix.
    #[error("{0:?} is ambiguous: several downloads match")]
    Ambiguous(String),
    /// The entry is complete or failed.
    #[error("the download of {0} is finished")]
    Finished(FileId),
    /// A command or an HTTP client downloads the file.
    #[error("{0} is downloaded by a command or an HTTP client; end it there")]
    Command(FileId),
    /// The queue has the maximum number of entries.
    #[error("the download queue is full: {MAX_PENDING} downloads are not finished")]
    Full,
    /// The incomplete file cannot be removed.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The entries cannot be stored.
    #[error("the database of the download queue failed")]
    Storage(#[from] StorageError),
    /// The queue was shut down.
    #[error("the download queue is closed")]
    Closed,
}
