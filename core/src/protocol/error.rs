//! Error replies.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bounds;
use crate::model::record::FileRecord;
use crate::storage::error::StorageError;
use crate::transport::error::TransportError;

/// The machine-readable cause of an error reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is malformed or contains an invalid value.
    Malformed,
    /// The kind or version of the request is unknown, or the feature is disabled on the node.
    Unsupported,
    /// The request or its reply exceeds a limit.
    TooLarge,
    /// The file, piece or name is unknown.
    NotFound,
    /// The session is invalid, or the sender is not a member of the swarm.
    Unauthorized,
    /// The session was replaced by a newer one of the same key, which another process of the sender opened.
    Replaced,
    /// The sender is authenticated but lacks the right.
    Forbidden,
    /// The node is overloaded or shutting down. Retry later or at another node.
    Busy,
    /// The request conflicts with a concurrent request.
    Conflict,
    /// There is no free space.
    Full,
    /// Several files match the query.
    Ambiguous,
    /// The database failed. Retry later.
    Storage,
    /// An internal fault of the node, or an unknown code.
    #[serde(other)]
    Internal,
}

/// Writes the code as on the wire.
impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// An error reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ErrorReply {
    /// The cause, for programs.
    pub code: ErrorCode,
    /// The cause, for people, at most [`bounds::MAX_TEXT`] bytes.
    #[serde(deserialize_with = "bounds::text")]
    pub message: String,
    /// The delay before a retry, in milliseconds.
    #[serde(default, rename = "retry_after", skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The matching files, at most 16; only with `ambiguous`.
    #[serde(
        default,
        skip_serializing_if = "<[_]>::is_empty",
        deserialize_with = "bounds::optional_list::<_, _, _, { bounds::MAX_MATCHES }>"
    )]
    pub matches: Box<[FileRecord]>,
}

impl ErrorReply {
    /// Creates an error reply.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None, matches: Box::default() }
    }

    /// Sets the delay before a retry.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after_ms = Some(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self
    }
}

/// Reveals to the remote whether a retry makes sense, and no internals of the database.
impl From<StorageError> for ErrorReply {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } => Self::new(ErrorCode::Full, "the database is full"),
            StorageError::TooLarge { .. } | StorageError::InvalidKey { .. } => {
                Self::new(ErrorCode::TooLarge, "the request exceeds a limit of the database")
            }
            StorageError::Closed => Self::new(ErrorCode::Busy, "the node is shutting down"),
            StorageError::Unavailable { .. } => {
                let message = "the database is temporarily unavailable";
                Self::new(ErrorCode::Storage, message).retry_after(Duration::from_secs(1))
            }
            _ => Self::new(ErrorCode::Storage, "the database failed").retry_after(Duration::from_secs(1)),
        }
    }
}

/// The reply on a connection that has ended, which is never sent.
impl From<TransportError> for ErrorReply {
    fn from(_: TransportError) -> Self {
        Self::new(ErrorCode::Internal, "connection closed")
    }
}
