//! Errors that travel: what one node tells another about a request that it could not answer.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::record::FileRecord;
use crate::storage::error::StorageError;

/// What kind of failure it is, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is not well formed, or a value in it is not allowed.
    Malformed,
    /// The kind of request or its version is not known here.
    Unsupported,
    /// The request or the reply to it would be larger than allowed.
    TooLarge,
    /// There is no such file, piece or peer here.
    NotFound,
    /// The session is not valid (any more), or the sender is not a member of the swarm.
    Unauthorized,
    /// The sender is known and may not do this.
    Forbidden,
    /// Not now; repeat it after a while, or ask somebody else.
    Busy,
    /// It contradicts what somebody else did at the same time.
    Conflict,
    /// There is no room.
    Full,
    /// Several files match.
    Ambiguous,
    /// The database failed; repeat it later.
    Storage,
    /// A failure that is the node's own fault, or a code that is not known here.
    Internal,
}

const CODES: [(ErrorCode, &str); 12] = [
    (ErrorCode::Malformed, "malformed"),
    (ErrorCode::Unsupported, "unsupported"),
    (ErrorCode::TooLarge, "too_large"),
    (ErrorCode::NotFound, "not_found"),
    (ErrorCode::Unauthorized, "unauthorized"),
    (ErrorCode::Forbidden, "forbidden"),
    (ErrorCode::Busy, "busy"),
    (ErrorCode::Conflict, "conflict"),
    (ErrorCode::Full, "full"),
    (ErrorCode::Ambiguous, "ambiguous"),
    (ErrorCode::Storage, "storage"),
    (ErrorCode::Internal, "internal"),
];

impl ErrorCode {
    /// The code as it is written on the wire.
    pub fn as_str(self) -> &'static str {
        CODES.iter().find(|(code, _)| *code == self).map_or("internal", |(_, text)| text)
    }
}

impl From<String> for ErrorCode {
    fn from(text: String) -> Self {
        CODES.iter().find(|(_, known)| *known == text).map_or(Self::Internal, |(code, _)| *code)
    }
}

impl From<ErrorCode> for String {
    fn from(code: ErrorCode) -> String {
        code.as_str().to_owned()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reply to a request that could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ErrorReply {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What happened, for people.
    pub message: String,
    /// In how many milliseconds it makes sense to ask again.
    #[serde(default, rename = "retry_after", skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// With `ambiguous`: the files that match, at most 16.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub matches: Box<[FileRecord]>,
}

impl ErrorReply {
    /// A failure of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None, matches: Box::default() }
    }

    /// The same, to be asked again after a while.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after_ms = Some(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self
    }
}

/// What a remote learns of a failure of the database: whether to ask again, and nothing of what is inside.
impl From<StorageError> for ErrorReply {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } => Self::new(ErrorCode::Full, "the database is full"),
            StorageError::TooLarge { .. } | StorageError::InvalidKey { .. } => {
                Self::new(ErrorCode::TooLarge, "this is more than the database holds")
            }
            StorageError::Closed => Self::new(ErrorCode::Busy, "shutting down"),
            StorageError::Unavailable { .. } => {
                let message = "the database is not available at the moment";
                Self::new(ErrorCode::Storage, message).retry_after(Duration::from_secs(1))
            }
            _ => Self::new(ErrorCode::Storage, "the database failed").retry_after(Duration::from_secs(1)),
        }
    }
}
