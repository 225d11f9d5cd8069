//! Layers: storages that wrap another [`super::Storage`] and add one function each.
//!
//! [`report`] is always present; `[storage.layers]` of a configuration enables the others. [`metrics`] and [`report`] are
//! outside of [`retry`], so that they see calls as the caller does, including retries.

pub mod metrics;
pub mod report;
pub mod retry;
