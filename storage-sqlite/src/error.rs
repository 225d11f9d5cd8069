//! SQLite's errors in the words of the storage.

use std::path::Path;

use enjambre_core::storage::error::StorageError;
use rusqlite::{Error, ErrorCode};

/// What an error of SQLite on the database `path` means for the caller who tried to do `action`.
pub(crate) fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    // The index of the log found no room when a connection was opened.
    let no_room =
        error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    match error.sqlite_error_code() {
        _ if no_room => StorageError::Full { source: error.into() },
        Some(ErrorCode::DiskFull) => StorageError::Full { source: error.into() },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StorageError::damaged(path, error),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StorageError::Locked { path: path.to_path_buf() }
        }
        _ => StorageError::backend(format!("{action} {}", path.display()), error),
    }
}

/// Whether the disk had no room.
pub(crate) fn is_full(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}
