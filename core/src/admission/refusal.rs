//! Why somebody is not answered: the same words at trackers and at peers.

use crate::model::id::PeerId;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::swarm::membership::Invalid;

/// Why somebody is not answered. To them all of it is `unauthorized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody has proven who is at the other end.
    #[error("this swarm is by invitation: come over a connection that is authenticated")]
    NoIdentity,
    /// Nobody has shown that the peer is a member.
    #[error(
        "only members of this swarm are answered, and {0} is not known as one here: one comes in by an invitation, and introduces itself"
    )]
    Stranger(PeerId),
    /// What it has shown makes it no member.
    #[error("the membership is not accepted: {0}")]
    Membership(#[from] Invalid),
    /// It has shown too much.
    #[error("this connection has shown too many memberships; try again in a minute, or over another one")]
    TooMany,
    /// It was a member.
    #[error("this peer was thrown out of the swarm; it cannot come back with the same key")]
    ThrownOut,
}

impl From<Refusal> for ErrorReply {
    fn from(refusal: Refusal) -> Self {
        Self::new(ErrorCode::Unauthorized, refusal.to_string())
    }
}
