//! Membership of an invite-only swarm, on the side of peers.
//!
//! [`members::Members`] holds a node's membership state. [`gate::MembershipGate`] rejects requests of non-members, and
//! [`member_transport::MemberTransport`] authorizes outgoing connections and refuses replies of non-members. Both are
//! wrappers that an open swarm does without. Trackers use [`crate::tracker::admission`] instead, on top of the same
//! [`verifier`], [`admitted`] peers and [`refusal`]s.
//!
//! Membership requires connections whose remote is authenticated
//! ([`identity`](enjambre_core::transport::PeerInfo::identity)).

pub mod admitted;
pub mod credentials;
pub mod gate;
pub mod member_transport;
pub mod members;
pub mod per_connection;
pub mod refusal;
pub mod store;
pub mod verifier;

#[cfg(test)]
mod tests;
