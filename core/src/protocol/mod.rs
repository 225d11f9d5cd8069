//! The wire protocol: all requests and replies, their CBOR encoding, and both sides of a call.
//!
//! `docs/PROTOCOL.md` specifies it for implementers of other clients.

pub mod announce;
pub mod authorization;
pub mod bounds;
pub mod client;
pub mod codec;
pub mod error;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod lookup;
pub mod message;
pub mod server;
