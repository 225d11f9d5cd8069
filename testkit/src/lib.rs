//! Conformance test suites and fault wrappers for the plug-in traits of Enjambre.
//!
//! [`storage`] tests an implementation of [`enjambre_core::storage::Storage`], [`transport`] one of
//! [`enjambre_core::transport::Transport`]. Add this crate as a dev-dependency of a plug-in.

pub mod clock;
pub mod storage;
pub mod transport;
