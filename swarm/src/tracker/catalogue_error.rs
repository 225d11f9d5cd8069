//! Replies to catalogue errors.

use std::time::Duration;

use crate::catalogue::error::CatalogueError;
use enjambre_core::StorageError;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};

impl From<CatalogueError> for ErrorReply {
    fn from(error: CatalogueError) -> Self {
        let code = match error {
            CatalogueError::Storage(StorageError::Conflict) | CatalogueError::Conflict => ErrorCode::Conflict,
            CatalogueError::Storage(error) => return error.into(),
            CatalogueError::NotFound { .. } => ErrorCode::NotFound,
            CatalogueError::Ambiguous { ref matches, .. } => {
                let message = error.to_string();
                let matches = matches.clone().into_boxed_slice();
                return Self { matches, ..Self::new(ErrorCode::Ambiguous, message) };
            }
            CatalogueError::Unauthorized | CatalogueError::NoInvitation | CatalogueError::Revoked => {
                ErrorCode::Unauthorized
            }
            CatalogueError::Replaced => ErrorCode::Replaced,
            CatalogueError::NameReserved { .. } => ErrorCode::Forbidden,
            CatalogueError::Malformed { .. } => ErrorCode::Malformed,
            CatalogueError::QuotaFull { .. }
            | CatalogueError::TooManyPins(_)
            | CatalogueError::TooManyFiles
            | CatalogueError::TooManyRevoked => ErrorCode::Full,
            CatalogueError::TooManyPeers | CatalogueError::Busy => ErrorCode::Busy,
        };
        let reply = Self::new(code, error.to_string());
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
