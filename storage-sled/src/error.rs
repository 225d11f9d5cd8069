//! Conversion of sled's errors to [`StorageError`].

use std::io::ErrorKind;
use std::path::Path;

use enjambre_core::StorageError;
use enjambre_core::storage::embedded::guarded;
use sled::Error;

/// Converts an error of sled during `action` on the database `path`.
pub(crate) fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    match error {
        Error::Corruption { .. } => StorageError::damaged(path, error),
        Error::Io(io) if io.kind() == ErrorKind::StorageFull => StorageError::Full { source: io.into() },
        error => StorageError::backend(format!("{action} {}", path.display()), error),
    }
}

/// Runs an operation that may read damaged data and converts a panic to [`StorageError::Corrupt`]: sled panics if it reads
/// inconsistent data.
pub(crate) fn catch_panic<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    guarded(read).unwrap_or_else(|panicked| Err(StorageError::damaged(path, panicked)))
}

/// Returns whether sled found its file locked. sled reports it in the message only.
pub(crate) fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Io(io)
        if io.kind() == ErrorKind::WouldBlock || io.to_string().contains("could not acquire lock"))
}
