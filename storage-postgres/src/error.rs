//! Failures of requests to the server, and their conversion to [`StorageError`].

use std::error::Error as _;
use std::io;
use std::time::Duration;

use enjambre_core::StorageError;
use enjambre_core::model::time::human;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server did not answer in time.
    #[error("the server did not answer within {}", human(*.0))]
    Timeout(Duration),
    /// The name of the server could not be resolved.
    #[error("cannot resolve the name of the server: {0}")]
    Resolve(#[source] io::Error),
    /// The server reported an error, or the connection failed.
    #[error("{}", describe(.0))]
    Server(#[source] Error),
}

/// The possible reactions to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The connection is unusable. The outcome of requests without an answer is unknown.
    ConnectionLost,
    /// A concurrent transaction interfered. The same transaction may succeed when it is retried.
    Retryable,
    /// The wait for a row lock timed out.
    LockTimeout,
    /// The server rejected the request. The connection stays usable.
    Rejected,
}

impl Failure {
    pub(crate) fn class(&self) -> Class {
        let Self::Server(error) = self else { return Class::ConnectionLost };
        let Some(code) = error.code() else {
            return if is_connection_error(error) { Class::ConnectionLost } else { Class::Rejected };
        };
        // 08: connection errors. 57P: shutdown, crash, start, or idle timeout of the server. 25P03: timeout of an idle
        // transaction. 25006: read-only server, after a failover. 40003: the server does not know the outcome of the commit.
        if code.code().starts_with("08")
            || code.code().starts_with("57P")
            || matches!(code.code(), "25P03" | "25006" | "40003")
        {
            Class::ConnectionLost
        } else if matches!(
            *code,
            SqlState::T_R_SERIALIZATION_FAILURE
                | SqlState::T_R_DEADLOCK_DETECTED
                | SqlState::UNIQUE_VIOLATION
        ) {
            Class::Retryable
        } else if *code == SqlState::LOCK_NOT_AVAILABLE {
            Class::LockTimeout
        } else {
            Class::Rejected
        }
    }

    /// Returns whether the server reported that the statement failed, so its outcome is known.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Server(error) if error.code().is_some()) && self.class() != Class::ConnectionLost
    }

    /// Converts the failure of `action`, a verb phrase.
    pub(crate) fn explain(self, action: &str) -> StorageError {
        if self.class() != Class::Rejected {
            return StorageError::Unavailable { reason: self.to_string() };
        }
        let code = match &self {
            Self::Server(error) => error.code().cloned(),
            Self::Timeout(_) | Self::Resolve(_) => None,
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

/// A prepared statement belongs to its session.
fn hint(code: &SqlState) -> &'static str {
    match *code {
        SqlState::INVALID_SQL_STATEMENT_NAME | SqlState::DUPLICATE_PSTATEMENT => {
            "; connect to the server itself, or use a connection pooler in session mode"
        }
        _ => "",
    }
}

/// Includes the cause, because the errors of the client are unspecific.
fn describe(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} (SQLSTATE {}){}", error.message(), error.code().code(), hint(error.code()));
    }
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Returns whether an error without an SQLSTATE is an error of the connection, and not of a certificate, an encoding or a
/// setting, for which a retry is useless.
fn is_connection_error(error: &Error) -> bool {
    let Some(source) = error.source() else { return true };
    let io = source.downcast_ref::<io::Error>();
    io.is_some_and(|io| !matches!(io.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput))
}
