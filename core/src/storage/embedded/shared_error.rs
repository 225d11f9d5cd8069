//! One error for many callers: the whole group hears of the failure of its commit.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::storage::error::{Source, StorageError};

/// An error that several callers hold.
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

/// A failed sync, told to each caller that waited for it. What the caller can do stays the same: a full disk
/// stays `Full`.
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
            StorageError::backend("make everything durable", self.error.clone())
        }
    }
}

/// An engine panicked; what it said.
#[derive(Debug, thiserror::Error)]
#[error("the storage engine panicked: {0}")]
pub(super) struct Panicked(String);

/// Runs a piece of the engine and turns a panic into an error. Callers drop the engine afterwards, so nobody
/// sees what the panic left behind.
pub(super) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Panicked> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run)).map_err(|payload| Panicked(describe(&*payload)));
    GUARDED.set(before);
    outcome
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs an engine whose panics become errors: a program's own panic hook need not tell of them.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

fn describe(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}
