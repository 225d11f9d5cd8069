//! The plug-in traits for transports: requests and replies between two nodes.
//!
//! A request is a header. A reply is a header and an optional payload, which no serializer copies. Replies are matched to
//! requests by the id in the header ([`envelope`]). Requests and replies themselves are decoded by [`crate::protocol`]. The
//! contract of the traits is checked by the conformance test suite of the crate `enjambre-testkit`.

pub mod budget;
pub mod caller;
pub mod calls;
pub mod dialer;
mod endpoint_checks;
pub mod envelope;
pub mod error;
mod interface;
pub mod memory;
mod message;
pub mod metrics;
mod peer_info;

pub use endpoint_checks::{check_bind, check_connect};
pub use interface::{Connection, Deadline, Incoming, Listener, ReplySink, Transport};
pub use message::{Message, MessageLimits};
pub use peer_info::{ConnectionHandle, ConnectionId, PeerInfo};
