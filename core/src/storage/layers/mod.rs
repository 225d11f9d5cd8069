//! Layers: storages that wrap another [`super::Storage`] and add one function each.
//!
//! `[storage.layers]` of a configuration enables them; by default there is none. [`metrics`] is outside of [`retry`], so that
//! it measures calls as the caller sees them, including retries.

pub mod metrics;
pub mod retry;
