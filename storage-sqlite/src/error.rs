//! Conversion of SQLite's errors to [`StorageError`].

use std::path::Path;

use enjambre_core::StorageError;
use rusqlite::{Error, ErrorCode};

/// Converts an error of SQLite during `action` on the database `path`.
pub(crate) fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    // The source of the error repeats it in other words.
    let cause = error.to_string();
    // A connection could not be opened because the index of the log did not fit on the disk.
    let no_space =
        error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    match error.sqlite_error_code() {
        _ if no_space => full(path, action, &cause),
        Some(ErrorCode::DiskFull) => full(path, action, &cause),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StorageError::damaged(path, cause),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StorageError::Locked { path: path.to_path_buf() }
        }
        _ => StorageError::backend(format!("{action} {}", path.display()), cause),
    }
}

fn full(path: &Path, action: &str, cause: &str) -> StorageError {
    StorageError::Full { source: format!("cannot {action} {}: {cause}", path.display()).into() }
}

/// Returns whether the disk was full.
pub(crate) fn is_full(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}
