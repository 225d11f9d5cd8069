//! Failure of a command: an exit status and a message of one line.

use std::fmt;
use std::process::ExitCode;

use enjambre_core::StorageError;
use enjambre_core::storage::inspect::with_causes;
use enjambre_swarm::catalogue::error::CatalogueError;
use enjambre_swarm::download::DownloadError;
use enjambre_swarm::library::error::LibraryError;
use enjambre_swarm::library::publish::PublishError;
use enjambre_swarm::tracker_client::error::TrackerError;
use serde::{Deserialize, Serialize};

use crate::config::error::ConfigError;

/// The exit statuses of failed commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[non_exhaustive]
pub(crate) enum Status {
    /// 1: the operation failed.
    Failed = 1,
    /// 2: the command line or the configuration is invalid.
    Usage = 2,
    /// 3: the file, peer, invitation or name was not found.
    NotFound = 3,
    /// 4: no tracker or no provider is reachable.
    Unreachable = 4,
    /// 130: a signal interrupted the command, as shells report it for Ctrl-C.
    Interrupted = 130,
}

/// A failed command. It can be sent to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    /// The failed action, its cause and the remedy, in one line.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, message: one_line(&message.to_string()) }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Status::Failed, message)
    }

    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Status::Usage, message)
    }

    pub(crate) fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Status::NotFound, message)
    }

    pub(crate) fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(Status::Unreachable, message)
    }

    pub(crate) fn interrupted(message: impl fmt::Display) -> Self {
        Self::new(Status::Interrupted, message)
    }

    /// Creates a failure from an error with its chain of causes.
    pub(crate) fn from_error(status: Status, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(status, with_causes(error))
    }

    /// Prepends the failed action to the message.
    pub(crate) fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = one_line(&format!("{what}: {}", self.message));
        self
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status as u8)
    }
}

/// Joins lines.
fn one_line(text: &str) -> String {
    let lines = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::from_error(Status::Usage, &error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::from_error(Status::Failed, &error)
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for Failure {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::from_error(Status::Failed, &*error)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::from_error(Status::Failed, &error)
    }
}

impl From<CatalogueError> for Failure {
    fn from(error: CatalogueError) -> Self {
        let status = match &error {
            CatalogueError::NotFound { .. } => Status::NotFound,
            _ => Status::Failed,
        };
        Self::from_error(status, &error)
    }
}

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        let status = match &error {
            LibraryError::NotFound { .. } => Status::NotFound,
            LibraryError::Ambiguous { .. } => Status::Usage,
            _ => Status::Failed,
        };
        Self::from_error(status, &error)
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Library(error) => error.into(),
            // The user corrects both on the command line.
            PublishError::Name(_) | PublishError::NotUtf8 { .. } => Self::from_error(Status::Usage, &error),
            _ => Self::from_error(Status::Failed, &error),
        }
    }
}

impl From<TrackerError> for Failure {
    fn from(error: TrackerError) -> Self {
        let status = match &error {
            TrackerError::NotFound { .. } => Status::NotFound,
            TrackerError::Ambiguous { .. } => Status::Usage,
            TrackerError::Unreachable { .. } => Status::Unreachable,
            _ => Status::Failed,
        };
        Self::from_error(status, &error)
    }
}

impl From<&DownloadError> for Failure {
    fn from(error: &DownloadError) -> Self {
        let status = match error {
            DownloadError::NoProviders { .. } => Status::Unreachable,
            DownloadError::NoMember(_) | DownloadError::Library(LibraryError::NotFound { .. }) => {
                Status::NotFound
            }
            _ => Status::Failed,
        };
        Self::from_error(status, error)
    }
}

pub(crate) trait ResultContext<T> {
    /// Converts the error to a failure that starts with the action.
    fn context(self, action: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> ResultContext<T> for Result<T, E> {
    fn context(self, action: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| error.into().context(action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_one_line_with_all_causes() {
        let cause = std::io::Error::other("the disk\nis gone");
        let error = ConfigError::Read { path: "/x".into(), source: cause };
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "cannot read configuration file /x: the disk; is gone");
        assert_eq!(failure.status as u8, 2);
    }
}
