//! What a failure on the way to the server or back means for the caller.

use std::io;
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// Why a conversation with the server failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// There was no answer in time.
    #[error("the server did not answer within {0:?}")]
    Silent(Duration),
    /// It is not known where the server is.
    #[error("no address is known for its name: {0}")]
    Nameless(#[source] io::Error),
    /// The server, or the connection to it, said so.
    #[error("{}", said(.0))]
    Server(#[source] Error),
}

/// What can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The connection is of no use any more, and whatever had no answer may have been done or not.
    Lost,
    /// Somebody else was in the way; the same transaction may succeed when it is done again.
    Again,
    /// Somebody else holds what it needs, and it may not wait any longer for that.
    Held,
    /// The server refused, and goes on.
    Refused,
}

impl Failure {
    pub(crate) fn class(&self) -> Class {
        let Self::Server(error) = self else { return Class::Lost };
        let Some(code) = error.code() else {
            return if is_broken(error) { Class::Lost } else { Class::Refused };
        };
        // Connections: 08. A shutdown, a crash, a start, a session that was idle for too long: 57P. A timeout within
        // a transaction: 25P03. A server that may only be read, because another one took its place: 25006. A commit
        // of which the server itself does not know: 40003.
        if code.code().starts_with("08")
            || code.code().starts_with("57P")
            || matches!(code.code(), "25P03" | "25006" | "40003")
        {
            Class::Lost
        } else if matches!(
            *code,
            SqlState::T_R_SERIALIZATION_FAILURE
                | SqlState::T_R_DEADLOCK_DETECTED
                | SqlState::UNIQUE_VIOLATION
        ) {
            Class::Again
        } else if *code == SqlState::LOCK_NOT_AVAILABLE {
            Class::Held
        } else {
            Class::Refused
        }
    }

    /// Whether the server itself said what became of the statement.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Server(error) if error.code().is_some()) && self.class() != Class::Lost
    }

    /// In the words of the storage; `action` is what was tried.
    pub(crate) fn explain(self, action: &str) -> StorageError {
        if matches!(self.class(), Class::Lost | Class::Again | Class::Held) {
            return StorageError::Unavailable { reason: self.to_string() };
        }
        let code = match &self {
            Self::Server(error) => error.code().cloned(),
            Self::Silent(_) | Self::Nameless(_) => None,
        };
        match code {
            Some(SqlState::DISK_FULL) => StorageError::Full { source: self.into() },
            Some(
                SqlState::TOO_MANY_CONNECTIONS
                | SqlState::OUT_OF_MEMORY
                | SqlState::CONFIGURATION_LIMIT_EXCEEDED
                | SqlState::INSUFFICIENT_RESOURCES
                | SqlState::QUERY_CANCELED,
            ) => StorageError::Unavailable { reason: self.to_string() },
            Some(SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED) => {
                StorageError::Corrupt { what: "the PostgreSQL server".to_owned(), source: Some(self.into()) }
            }
            _ => StorageError::backend(action, self),
        }
    }
}

/// The client's errors say little themselves; what happened is in their sources.
fn said(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("the server says: {} ({})", error.message(), error.code().code());
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Of an error that no server sent: whether it is the connection's. Certificates, encodings and settings do not
/// mend themselves.
fn is_broken(error: &Error) -> bool {
    let Some(source) = std::error::Error::source(error) else { return true };
    let io = source.downcast_ref::<io::Error>();
    io.is_some_and(|io| !matches!(io.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput))
}
