//! What can go wrong in the catalogue, by what the asker can do about it.

use std::time::Duration;

use crate::model::id::PeerId;
use crate::model::layout::FileTooLarge;
use crate::model::name::Name;
use crate::model::record::FileRecord;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::storage::error::StorageError;
use crate::swarm::revocations::MAX_REVOKED;

/// An error of the catalogue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Nothing in the catalogue has this name or id.
    #[error("{what} is not in the catalogue")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// Several files have ids that begin so.
    #[error("the ids of {} files begin with {prefix}", count_text(*.more, .matches.len()))]
    Ambiguous {
        /// The digits that were asked for.
        prefix: String,
        /// The files, at most 16.
        matches: Vec<FileRecord>,
        /// Whether there are more.
        more: bool,
    },
    /// The session is not valid (any more).
    #[error("the session is not valid any more; say hello again")]
    Unauthorized,
    /// Nobody comes in by this invitation.
    #[error("this invitation is used up, over, cancelled, or none of this swarm")]
    NoInvitation,
    /// The peer was thrown out.
    #[error("this peer was thrown out of the swarm; it cannot come back with the same key")]
    Revoked,
    /// The name belongs to another peer.
    #[error("the name {name} is reserved for the peer {by}")]
    NameReserved {
        /// The name.
        name: Name,
        /// Who may publish it.
        by: PeerId,
    },
    /// As many were thrown out of late as a list of them holds.
    #[error(
        "{MAX_REVOKED} peers were thrown out in the last day, which is as many as peers keep; where so many have to go, make \
         another authority and invite those who stay"
    )]
    TooManyRevoked,
    /// Others changed the same entries again and again.
    #[error("others changed the same entry at the same time, again and again")]
    Conflict,
    /// A value in the request is not allowed.
    #[error("{problem}")]
    Malformed {
        /// What is wrong with it.
        problem: String,
    },
    /// A quota does not allow it.
    #[error("{size} bytes do not fit: {reserved} of {quota} bytes are taken")]
    QuotaFull {
        /// The bytes asked for.
        size: u64,
        /// The bytes promised already.
        reserved: u64,
        /// The bytes that may be promised.
        quota: u64,
    },
    /// The tracker has as many peers as it may have.
    #[error("this tracker has as many peers as it may have")]
    TooManyPeers,
    /// The catalogue has as many versions of names as it may have.
    #[error("this catalogue has as many files as it may have")]
    TooManyFiles,
}

fn count_text(more: bool, count: usize) -> String {
    if more { format!("more than {count}") } else { count.to_string() }
}

impl From<CatalogueError> for ErrorReply {
    fn from(error: CatalogueError) -> Self {
        let code = match error {
            CatalogueError::Storage(StorageError::Conflict) => ErrorCode::Conflict,
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
            CatalogueError::NameReserved { .. } => ErrorCode::Forbidden,
            CatalogueError::Conflict => ErrorCode::Conflict,
            CatalogueError::Malformed { .. } => ErrorCode::Malformed,
            CatalogueError::QuotaFull { .. }
            | CatalogueError::TooManyFiles
            | CatalogueError::TooManyRevoked => ErrorCode::Full,
            CatalogueError::TooManyPeers => ErrorCode::Busy,
        };
        let reply = Self::new(code, error.to_string());
        match code {
            ErrorCode::Conflict => reply.retry_after(Duration::from_millis(200)),
            ErrorCode::Busy => reply.retry_after(Duration::from_secs(30)),
            _ => reply,
        }
    }
}

impl From<FileTooLarge> for CatalogueError {
    fn from(error: FileTooLarge) -> Self {
        Self::Malformed { problem: error.to_string() }
    }
}
