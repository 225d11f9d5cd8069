//! Who may come in: the part of peers.
//!
//! [`members::Members`] is what a node knows of its swarm. [`door::Door`] keeps out who asks without a membership, and
//! [`introducing::MemberTransport`] shows this node's own to those that it asks, and leaves alone who has none. Both are
//! wrappers: where a swarm is open they are not there, and nothing costs anything. The trackers' part is in
//! [`crate::tracker::admission`]; how somebody is refused, known again and cut off is written once, in
//! [`refusal`], [`checks`] and [`admitted`].
//!
//! All of it rests on connections whose remote is known ([`crate::transport::PeerInfo::identity`]).

pub mod admitted;
pub mod by_connection;
pub mod checks;
pub mod door;
pub mod introducing;
pub mod kept;
pub mod members;
pub mod refusal;

#[cfg(test)]
mod tests;
