//! Why trackers gave no answer, by what the asker can do about it.

use std::fmt;

use crate::model::endpoint::Endpoint;
use crate::model::record::FileRecord;
use crate::protocol::client::CallError;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::readable::with_causes;

/// A tracker that could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreached {
    /// Where it was tried.
    pub endpoint: Endpoint,
    /// Why it did not work, for people.
    pub reason: String,
}

/// An error of asking trackers.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// All trackers that answered do not have it.
    #[error("{message}")]
    NotFound {
        /// What the tracker said.
        message: String,
    },
    /// Several files match.
    #[error("{message}; give more digits: {}", Matches(matches))]
    Ambiguous {
        /// What the tracker said.
        message: String,
        /// The files, at most 16 from each catalogue.
        matches: Vec<FileRecord>,
    },
    /// No tracker answered.
    #[error("no tracker can be reached{}", Reasons(reasons))]
    Unreachable {
        /// What was tried.
        reasons: Vec<Unreached>,
    },
    /// A tracker refused.
    #[error("{endpoint} answered: {error}")]
    Refused {
        /// Who refused.
        endpoint: Endpoint,
        /// What it said.
        error: ErrorReply,
    },
}

impl TrackerError {
    /// The error for a call to one tracker that gave no reply.
    pub fn from_call(endpoint: &Endpoint, error: &CallError) -> Self {
        match error.remote() {
            Some(error) => Self::from_reply(endpoint, error.clone()),
            None => Self::Unreachable { reasons: vec![Unreached::new(endpoint, error)] },
        }
    }

    fn from_reply(endpoint: &Endpoint, error: ErrorReply) -> Self {
        match error.code {
            ErrorCode::NotFound => Self::NotFound { message: error.message },
            ErrorCode::Ambiguous => {
                Self::Ambiguous { message: error.message, matches: error.matches.into_vec() }
            }
            _ => Self::Refused { endpoint: endpoint.clone(), error },
        }
    }

    /// The code of a refusal.
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::NotFound { .. } => Some(ErrorCode::NotFound),
            Self::Ambiguous { .. } => Some(ErrorCode::Ambiguous),
            Self::Refused { error, .. } => Some(error.code),
            Self::Unreachable { .. } => None,
        }
    }

    /// Whether another tracker on the same database may do better.
    pub const fn is_for_another(&self) -> bool {
        matches!(
            self.code(),
            None | Some(ErrorCode::Busy | ErrorCode::Storage | ErrorCode::Internal | ErrorCode::Unsupported)
        )
    }
}

impl Unreached {
    /// A call that failed, with all that is beneath the error.
    pub fn new(endpoint: &Endpoint, error: &dyn std::error::Error) -> Self {
        Self { endpoint: endpoint.clone(), reason: with_causes(error) }
    }
}

struct Reasons<'a>(&'a [Unreached]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(": none is configured; set peer.trackers");
        }
        for (at, Unreached { reason, .. }) in self.0.iter().enumerate() {
            write!(f, "{}{reason}", if at == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

struct Matches<'a>(&'a [FileRecord]);

impl fmt::Display for Matches<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, file) in self.0.iter().enumerate() {
            write!(f, "{}{} ({})", if at == 0 { "" } else { ", " }, file.id, file.name)?;
        }
        Ok(())
    }
}
