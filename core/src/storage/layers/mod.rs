//! Layers: storages that wrap another [`super::Storage`] and add one function each.
//!
//! [`observe`] is always present; `[storage.layers]` of a configuration enables [`retry`], which is inside of it, so that
//! latencies and failures are as the caller sees them, including retries.

pub mod observe;
pub mod retry;
