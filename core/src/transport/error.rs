//! Errors of transports, by the action that the caller can take.

use crate::model::endpoint::Endpoint;

/// The underlying error.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of a transport.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The remote is not reachable. The request was not sent and can be retried.
    #[error("cannot reach {endpoint}")]
    Unreachable {
        /// The remote.
        endpoint: Endpoint,
        /// The cause.
        #[source]
        source: Source,
    },
    /// The connection was lost. The request may have been executed.
    #[error("connection to {endpoint} lost")]
    Lost {
        /// The remote.
        endpoint: Endpoint,
    },
    /// No reply arrived before the deadline. The request may have been executed.
    #[error("no reply from {endpoint} before the deadline")]
    Deadline {
        /// The remote.
        endpoint: Endpoint,
    },
    /// The message exceeds a limit and was not sent.
    #[error("{what} of {actual} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// `"header"` or `"payload"`.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
        /// The size in bytes.
        actual: usize,
    },
    /// The connection or listener was closed on this side, or the connection of a reply has ended.
    #[error("connection closed")]
    Closed,
    /// No transport has the scheme of the endpoint, or its host or port is unusable.
    #[error("invalid endpoint {endpoint}: {problem}")]
    InvalidEndpoint {
        /// The endpoint.
        endpoint: Endpoint,
        /// The problem and its remedy.
        problem: String,
    },
    /// The swarm is invite-only, and the remote or this node is not a member.
    #[error("not authorized with {endpoint}: {problem}")]
    NotAdmitted {
        /// The remote.
        endpoint: Endpoint,
        /// The node without a membership, and the cause.
        problem: String,
    },
    /// Listening failed.
    #[error("cannot listen at {endpoint}")]
    Bind {
        /// The endpoint.
        endpoint: Endpoint,
        /// The cause.
        #[source]
        source: Source,
    },
}

impl TransportError {
    /// Returns whether the request was certainly not sent, so that a retry cannot execute it twice.
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TooLarge { .. } | Self::InvalidEndpoint { .. })
    }
}
