//! sled's errors in the words of the storage.

use std::io::ErrorKind;
use std::path::Path;

use enjambre_core::storage::error::StorageError;
use sled::Error;

/// What an error of sled on the database `path` means for the caller who tried to do `action`.
pub(crate) fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    match error {
        Error::Corruption { .. } => {
            StorageError::Corrupt { what: path.display().to_string(), source: Some(error.into()) }
        }
        Error::Io(io) if io.kind() == ErrorKind::StorageFull => StorageError::Full { source: io.into() },
        error => StorageError::backend(format!("{action} {}", path.display()), error),
    }
}

/// Whether sled found its file locked. It says so in words only.
pub(crate) fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Io(io)
        if io.kind() == ErrorKind::WouldBlock || io.to_string().contains("could not acquire lock"))
}
