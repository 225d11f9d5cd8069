//! How the command line talks to the process that owns a peer's data folder.
//!
//! Whoever holds the lock of the folder listens on a Unix socket in it that only its user may open. A client sends
//! one line of JSON, the command, and gets lines of JSON back, the events, until `done` or `failed`. A client that
//! goes away cancels its command. The owner going away without a last event is no failure: the client may become
//! the owner itself.

pub mod client;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod message;
pub mod server;
pub mod socket;
