//! Errors of requests to trackers.

use std::fmt;
use std::time::Duration;

use enjambre_core::protocol::client::CallError;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::storage::inspect::with_causes;
use enjambre_core::{Endpoint, FileRecord, TransportError};

/// A tracker that could not be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreachableTracker {
    /// The endpoint of the tracker.
    pub endpoint: Endpoint,
    /// The error text.
    pub reason: String,
}

/// An error of a request to trackers.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// No catalogue contains the file.
    #[error("{message}")]
    NotFound {
        /// The message of the tracker.
        message: String,
    },
    /// Several files match the prefix.
    #[error("{message}; add more digits: {}", Matches(matches))]
    Ambiguous {
        /// The message of the tracker.
        message: String,
        /// The files, at most 16 of each catalogue.
        matches: Vec<FileRecord>,
    },
    /// No tracker replied.
    #[error("{}", Reasons(reasons))]
    Unreachable {
        /// The trackers and their errors.
        reasons: Vec<UnreachableTracker>,
    },
    /// The tracker serves another catalogue than before.
    #[error("tracker {endpoint} now serves another catalogue")]
    OtherCatalogue {
        /// The endpoint of the tracker.
        endpoint: Endpoint,
    },
    /// A tracker violated the protocol.
    #[error("protocol violation by tracker {endpoint}: {problem}")]
    Protocol {
        /// The endpoint of the tracker.
        endpoint: Endpoint,
        /// The violation.
        problem: &'static str,
    },
    /// A tracker refused the request.
    #[error("tracker {endpoint} refused the request: {error}")]
    Refused {
        /// The endpoint of the tracker.
        endpoint: Endpoint,
        /// The error reply.
        error: ErrorReply,
    },
}

impl TrackerError {
    /// Converts the error of a call to one tracker.
    pub fn from_call(endpoint: &Endpoint, error: &CallError) -> Self {
        match error.remote() {
            Some(error) => Self::from_reply(endpoint, error.clone()),
            None => Self::Unreachable { reasons: vec![UnreachableTracker::new(endpoint, error)] },
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

    /// The code of the error reply; `None` if no tracker replied with an error.
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::NotFound { .. } => Some(ErrorCode::NotFound),
            Self::Ambiguous { .. } => Some(ErrorCode::Ambiguous),
            Self::Refused { error, .. } => Some(error.code),
            Self::Unreachable { .. } | Self::OtherCatalogue { .. } | Self::Protocol { .. } => None,
        }
    }

    /// The delay before a retry if the tracker is busy.
    pub(super) fn busy_delay(&self) -> Option<Duration> {
        match self {
            Self::Refused { error, .. } if error.code == ErrorCode::Busy => {
                Some(Duration::from_millis(error.retry_after_ms.unwrap_or_default()))
            }
            _ => None,
        }
    }

    /// Returns whether the session is not valid, or not any more.
    pub const fn is_unauthorized(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::Unauthorized | ErrorCode::Replaced))
    }

    /// Returns whether another tracker of the same catalogue may succeed.
    pub const fn is_retryable_elsewhere(&self) -> bool {
        matches!(
            self.code(),
            None | Some(ErrorCode::Busy | ErrorCode::Storage | ErrorCode::Internal | ErrorCode::Unsupported)
        )
    }
}

impl UnreachableTracker {
    /// A failed call, with the causes of the error.
    fn new(endpoint: &Endpoint, error: &CallError) -> Self {
        let reason = match error {
            CallError::Transport(TransportError::Unreachable { source, .. }) => {
                let cause = with_causes(&**source);
                let is_refused = cause.ends_with("connection refused");
                let remedy = if is_refused { "; check that it is running" } else { "" };
                format!("cannot reach tracker {endpoint}: {cause}{remedy}")
            }
            error => with_causes(error),
        };
        Self { endpoint: endpoint.clone(), reason }
    }

    /// A call that timed out.
    pub fn timed_out(endpoint: &Endpoint) -> Self {
        Self { endpoint: endpoint.clone(), reason: format!("{endpoint} did not reply in time") }
    }
}

struct Reasons<'a>(&'a [UnreachableTracker]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no tracker is configured; set peer.trackers");
        }
        for (at, UnreachableTracker { reason, .. }) in self.0.iter().enumerate() {
            write!(f, "{}{reason}", if at == 0 { "" } else { "; " })?;
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
