//! Panics of an engine as errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A panic of an engine with its message.
#[derive(Debug, thiserror::Error)]
#[error("the storage engine panicked: {0}")]
pub struct Panicked(String);

/// Calls an engine and converts a panic into an error. Callers drop the engine afterwards, so a broken invariant is not
/// observable.
pub fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Panicked> {
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
