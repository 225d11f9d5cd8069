//! sled's errors in the words of the storage.

use std::any::Any;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use enjambre_core::storage::error::StorageError;
use sled::Error;

/// What an error of sled on the database `path` means for the caller who tried to do `action`.
pub(crate) fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    match error {
        Error::Corruption { .. } => StorageError::damaged(path, error),
        Error::Io(io) if io.kind() == ErrorKind::StorageFull => StorageError::Full { source: io.into() },
        error => StorageError::backend(format!("{action} {}", path.display()), error),
    }
}

/// sled gave up with a panic, as it does where what it reads makes no sense to it; what it said.
#[derive(Debug, thiserror::Error)]
#[error("sled gave up on it: {0}")]
struct GaveUp(String);

/// Runs sled where it reads what may be damaged, and turns a panic into [`StorageError::Corrupt`].
pub(crate) fn sane<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|payload| Err(StorageError::damaged(path, GaveUp(describe(&*payload)))))
}

fn describe(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason").to_owned()
}

/// Whether sled found its file locked. It says so in words only.
pub(crate) fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Io(io)
        if io.kind() == ErrorKind::WouldBlock || io.to_string().contains("could not acquire lock"))
}
