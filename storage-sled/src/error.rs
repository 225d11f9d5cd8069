//! Conversion of sled's errors to [`StorageError`].

use std::any::Any;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use enjambre_core::StorageError;
use sled::Error;

/// Converts an error of sled during `action` on the database `path`.
pub(crate) fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    match error {
        Error::Corruption { .. } => StorageError::damaged(path, error),
        Error::Io(io) if io.kind() == ErrorKind::StorageFull => StorageError::Full { source: io.into() },
        error => StorageError::backend(format!("{action} {}", path.display()), error),
    }
}

/// A panic of sled, with its message. sled panics if it reads inconsistent data.
#[derive(Debug, thiserror::Error)]
#[error("sled panicked: {0}")]
struct Panicked(String);

/// Runs an operation that may read damaged data and converts a panic to [`StorageError::Corrupt`].
pub(crate) fn catch_panic<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|payload| Err(StorageError::damaged(path, Panicked(describe(&*payload)))))
}

fn describe(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// Returns whether sled found its file locked. sled reports it in the message only.
pub(crate) fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Io(io)
        if io.kind() == ErrorKind::WouldBlock || io.to_string().contains("could not acquire lock"))
}
