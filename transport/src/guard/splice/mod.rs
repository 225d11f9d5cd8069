//! Forwards ZMTP frames between a public socket and a private socket of the `zeromq` crate.
//!
//! One loop per direction. Message bytes are forwarded from the read buffer. Commands are removed, and answered if
//! necessary. Neither loop reads more than it can forward, so a side that does not read stops the other side, until the write
//! timeout.
//!
//! The payloads of replies bypass the crate, which would copy each one twice and keep buffers of that size for the lifetime
//! of the connection. An empty last frame marks the position of a payload; the guard sends or receives it there.

mod buffer;
mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

pub(crate) use buffer::BUFFER;
pub(crate) use inbound::{Inbound, Payloads, inbound};
pub(crate) use outbound::{Outbound, outbound};

/// Maximum number of queued PONGs. Further PINGs are not answered meanwhile.
pub(crate) const MAX_PONGS: usize = 4;
