//! Reasons for the refusal of a request, the same at trackers and peers.

use enjambre_core::PeerId;
use enjambre_core::model::membership::Invalid;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};

/// The reason for the refusal of a request. The reply has the code `unauthorized` in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The connection is not authenticated.
    #[error("this swarm is invite-only: connect through a transport that authenticates the peer")]
    NoIdentity,
    /// The peer is not known as a member.
    #[error("the peer {0} is not a member of this swarm; join with an invitation")]
    NotAMember(PeerId),
    /// The membership is not valid.
    #[error("the membership is not valid: {0}")]
    Membership(#[from] Invalid),
    /// The connection presented too many memberships.
    #[error("too many memberships on this connection; retry in a minute or on another connection")]
    TooMany,
    /// The peer was revoked.
    #[error("this peer was revoked and cannot rejoin the swarm with the same key")]
    Revoked,
}

impl From<Refusal> for ErrorReply {
    fn from(refusal: Refusal) -> Self {
        Self::new(ErrorCode::Unauthorized, refusal.to_string())
    }
}
