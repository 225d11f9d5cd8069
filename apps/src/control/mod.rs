//! The control protocol between the command line and a running node.
//!
//! The process that holds the lock of a data directory listens on a Unix socket in it, accessible to its user only. A
//! client sends a command as one line of JSON, possibly followed by content, and receives events as lines of JSON until
//! `done` or `failed`. The command is cancelled if the client disconnects. If the node exits without a final event, the client can lock the data
//! directory and run the command itself.

pub(crate) mod client;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod message;
pub(crate) mod server;
pub(crate) mod socket;
#[cfg(test)]
mod tests;
