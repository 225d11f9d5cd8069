//! Error replies of a seeder.

use crate::library::error::LibraryError;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};

/// The reply on a closed connection, which is never sent.
pub(super) fn connection_closed() -> ErrorReply {
    ErrorReply::new(ErrorCode::Internal, "connection closed")
}

/// Converts a library error to an error reply without internal details.
pub(super) fn from_library(error: LibraryError) -> ErrorReply {
    match error {
        LibraryError::Storage(error) => error.into(),
        LibraryError::Changed { .. } | LibraryError::NotFound { .. } => {
            ErrorReply::new(ErrorCode::NotFound, "file is no longer offered by this peer")
        }
        error => {
            tracing::warn!(%error, "piece read failed");
            ErrorReply::new(ErrorCode::Storage, "piece read failed")
        }
    }
}
