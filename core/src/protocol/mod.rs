//! The wire protocol: every request and reply once, their CBOR encoding, and the two ends of a call.
//!
//! `docs/PROTOCOL.md` describes the same for people who write a client in another language.

pub mod announce;
pub mod client;
pub mod codec;
pub mod error;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod introduction;
pub mod lookup;
pub mod message;
pub mod server;
