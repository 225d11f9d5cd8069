//! Errors that are returned to all callers of a group, and panics of an engine as errors.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::storage::error::{Source, StorageError};

/// A cloneable error.
#[derive(Debug, Clone)]
pub(super) struct SharedError(Arc<dyn std::error::Error + Send + Sync>);

impl SharedError {
    pub(super) fn new(source: Source) -> Self {
        Self(Arc::from(source))
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// A failed sync, which is returned to each caller that waits for it. A full disk remains `Full`.
#[derive(Debug, Clone)]
pub(super) struct FailedSync {
    full: bool,
    error: SharedError,
}

impl FailedSync {
    pub(super) fn new(error: StorageError) -> Self {
        let full = matches!(error, StorageError::Full { .. });
        Self { full, error: SharedError::new(error.into()) }
    }

    pub(super) fn error(&self) -> StorageError {
        if self.full {
            StorageError::Full { source: self.error.clone().into() }
        } else {
            StorageError::backend("sync the database", self.error.clone())
        }
    }
}

/// A panic of an engine with its message.
#[derive(Debug, thiserror::Error)]
#[error("the storage engine panicked: {0}")]
pub(super) struct Panicked(String);

/// Calls an engine and converts a panic into an error. Callers drop the engine afterwards, so a broken invariant is not
/// observable.
pub(super) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Panicked> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run)).map_err(|payload| Panicked(describe(&*payload)));
    GUARDED.set(before);
    outcome
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread is calling an engine whose panics become errors, so that a panic hook can ignore them.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

fn describe(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
