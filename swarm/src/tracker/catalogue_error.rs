//! Replies to catalogue errors.

use std::time::Duration;

use crate::catalogue::error::CatalogueError;
use enjambre_core::StorageError;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};

impl CatalogueError {
    /// The code of the error reply.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Storage(StorageError::Conflict) | Self::Conflict => ErrorCode::Conflict,
            Self::Storage(StorageError::Full { .. }) => ErrorCode::Full,
            Self::Storage(_) => ErrorCode::Storage,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Ambiguous { .. } => ErrorCode::Ambiguous,
            Self::Unauthorized | Self::NoInvitation | Self::Revoked => ErrorCode::Unauthorized,
            Self::Replaced => ErrorCode::Replaced,
            Self::NameReserved { .. } => ErrorCode::Forbidden,
            Self::Malformed { .. } => ErrorCode::Malformed,
            Self::QuotaFull { .. } | Self::TooManyPins(_) | Self::TooManyFiles | Self::TooManyRevoked => {
                ErrorCode::Full
            }
            Self::TooManyPeers | Self::Busy => ErrorCode::Busy,
        }
    }
}

impl From<CatalogueError> for ErrorReply {
    fn from(error: CatalogueError) -> Self {
        let code = error.code();
        let reply = match error {
            CatalogueError::Storage(error) if code != ErrorCode::Conflict => return error.into(),
            CatalogueError::Ambiguous { ref matches, .. } => {
                Self { matches: matches.clone().into_boxed_slice(), ..Self::new(code, error.to_string()) }
            }
            _ => Self::new(code, error.to_string()),
        };
        match code {
            ErrorCode::Conflict => reply.retry_after(Duration::from_millis(200)),
            ErrorCode::Busy if matches!(error, CatalogueError::Busy) => {
                reply.retry_after(Duration::from_secs(1))
            }
            ErrorCode::Busy => reply.retry_after(Duration::from_secs(30)),
            _ => reply,
        }
    }
}
