//! Conversion of SQLite's errors to [`StorageError`].

use std::path::Path;

use enjambre_core::StorageError;
use rusqlite::{Error, ErrorCode};

/// Converts an error of SQLite during `action` on the database `path`.
pub(crate) fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    // A connection could not be opened because the index of the log did not fit on the disk.
    let no_space =
        error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    match error.sqlite_error_code() {
        _ if no_space => full(path, action, &error),
        Some(ErrorCode::DiskFull) => full(path, action, &error),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StorageError::damaged(path, error),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StorageError::Locked { path: path.to_path_buf() }
        }
        _ => StorageError::backend(format!("{action} {}", path.display()), error),
    }
}

fn full(path: &Path, action: &str, error: &Error) -> StorageError {
    StorageError::Full { source: format!("cannot {action} {}: {error}", path.display()).into() }
}

/// Returns whether the disk was full.
pub(crate) fn is_full(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}
