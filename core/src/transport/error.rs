//! What can go wrong between two nodes, by what the caller can do about it.

use crate::model::endpoint::Endpoint;

/// The error beneath, kept as the source.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of a transport.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The remote cannot be reached; the request was not sent and may be repeated.
    #[error("{endpoint} cannot be reached")]
    Unreachable {
        /// Where it was tried.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Source,
    },
    /// The connection was lost after the request may have been sent.
    #[error("the connection to {endpoint} was lost")]
    Lost {
        /// Where it led.
        endpoint: Endpoint,
    },
    /// No reply came in time.
    #[error("{endpoint} did not answer in time")]
    Deadline {
        /// Who was asked.
        endpoint: Endpoint,
    },
    /// A message goes beyond the limits; it was not sent.
    #[error("a {what} of {actual} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// `"header"` or `"payload"`.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
        /// The size in bytes.
        actual: usize,
    },
    /// The connection or listener was closed on this side, or the remote that a reply was for is gone.
    #[error("the connection is closed")]
    Closed,
    /// The endpoint's scheme belongs to no transport here, or its port or host cannot be used.
    #[error("{endpoint} cannot be used: {problem}")]
    InvalidEndpoint {
        /// The endpoint.
        endpoint: Endpoint,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The swarm is one by invitation, and the remote or this node is not in it.
    #[error("{endpoint} is left alone: {problem}")]
    NotAdmitted {
        /// Who was to be asked.
        endpoint: Endpoint,
        /// Who is not in, and why.
        problem: String,
    },
    /// The endpoint cannot be listened at.
    #[error("cannot listen at {endpoint}")]
    Bind {
        /// The endpoint.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Source,
    },
}

impl TransportError {
    /// Whether the request was certainly not sent, so that repeating it cannot do anything twice.
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TooLarge { .. } | Self::InvalidEndpoint { .. })
    }
}
