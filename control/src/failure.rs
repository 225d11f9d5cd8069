//! Failure of a command: an exit status, a code for programs and a message of one line.

use std::error::Error;
use std::process::ExitCode;
use std::{fmt, io};

use enjambre_core::StorageError;
use enjambre_core::model::layout::FileTooLarge;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::storage::inspect::with_causes;
use enjambre_swarm::catalogue::error::CatalogueError;
use enjambre_swarm::download::DownloadError;
use enjambre_swarm::library::error::LibraryError;
use enjambre_swarm::library::publish::PublishError;
use enjambre_swarm::tracker_client::error::TrackerError;
use serde::{Deserialize, Serialize};

/// The exit statuses of failed commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[non_exhaustive]
pub enum Status {
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
pub struct Failure {
    /// The exit status of the command.
    pub status: Status,
    /// The cause, for programs, if it is one of the protocol's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// The failed action, its cause and the remedy, in one line.
    pub message: String,
}

impl Failure {
    /// Creates a failure. Joins the lines of the message.
    pub fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, code: None, message: one_line(&message.to_string()) }
    }

    /// Creates a failure with [`Status::Failed`].
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Status::Failed, message)
    }

    /// Creates a failure with [`Status::Usage`].
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Status::Usage, message)
    }

    /// Creates a failure with [`Status::NotFound`].
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Status::NotFound, message)
    }

    /// Creates a failure with [`Status::Unreachable`].
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(Status::Unreachable, message)
    }

    /// Creates a failure with [`Status::Interrupted`].
    pub fn interrupted(message: impl fmt::Display) -> Self {
        Self::new(Status::Interrupted, message)
    }

    /// Creates a failure from an error with its chain of causes.
    pub fn from_error(status: Status, error: &(dyn Error + 'static)) -> Self {
        Self { code: code_of(error), ..Self::new(status, with_causes(error)) }
    }

    /// Prepends the failed action to the message.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = one_line(&format!("{what}: {}", self.message));
        self
    }

    /// The exit code of a process whose command failed.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status as u8)
    }
}

/// Returns the code of the first error in the chain of causes that has one.
fn code_of(error: &(dyn Error + 'static)) -> Option<ErrorCode> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        if let Some(error) = error.downcast_ref::<TrackerError>() {
            return error.code();
        }
        if let Some(error) = error.downcast_ref::<CatalogueError>() {
            return Some(error.code());
        }
        match error.downcast_ref::<PublishError>() {
            None | Some(PublishError::Library(_) | PublishError::TooLarge { .. }) => {}
            Some(PublishError::Changed(_) | PublishError::Vanished(_)) => return Some(ErrorCode::Conflict),
            Some(_) => return Some(ErrorCode::Malformed),
        }
        match error.downcast_ref() {
            Some(DownloadError::Library(error)) => return code_of(error),
            Some(DownloadError::NoMember(_)) => return Some(ErrorCode::NotFound),
            Some(DownloadError::Cancelled) => return Some(ErrorCode::Busy),
            _ => {}
        }
        if error.is::<FileTooLarge>() {
            return Some(ErrorCode::TooLarge);
        }
        let is_full = matches!(error.downcast_ref(), Some(LibraryError::Full(_)))
            || matches!(error.downcast_ref(), Some(StorageError::Full { .. }))
            || matches!(
                error.downcast_ref().map(io::Error::kind),
                Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            );
        match error.downcast_ref() {
            _ if is_full => Some(ErrorCode::Full),
            Some(LibraryError::NotFound(_) | LibraryError::NotACollection(_)) => Some(ErrorCode::NotFound),
            Some(LibraryError::Ambiguous { .. }) => Some(ErrorCode::Ambiguous),
            Some(
                LibraryError::Exists(_)
                | LibraryError::Incomplete { .. }
                | LibraryError::Changed { .. }
                | LibraryError::MissingPiece { .. }
                | LibraryError::Damaged { .. },
            ) => Some(ErrorCode::Conflict),
            _ => None,
        }
    })
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

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::from_error(Status::Failed, &error)
    }
}

impl From<Box<dyn Error + Send + Sync>> for Failure {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        Self::from_error(Status::Failed, &*error)
    }
}

impl From<FileTooLarge> for Failure {
    fn from(error: FileTooLarge) -> Self {
        Self::from_error(Status::Failed, &error)
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
            CatalogueError::Ambiguous { .. } | CatalogueError::Malformed { .. } => Status::Usage,
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

/// Adds the failed action to errors.
pub trait ResultContext<T> {
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
    use enjambre_core::FileId;

    use super::*;

    #[test]
    fn failed_download_has_the_code_of_its_cause() {
        let id = FileId::from_bytes([1; 32]);
        for (error, status, code) in [
            (DownloadError::Cancelled, Status::Failed, Some(ErrorCode::Busy)),
            (DownloadError::NoMember("a".parse().unwrap()), Status::NotFound, Some(ErrorCode::NotFound)),
            (LibraryError::Exists("a".into()).into(), Status::Failed, Some(ErrorCode::Conflict)),
            (LibraryError::NotACollection(id).into(), Status::Failed, Some(ErrorCode::NotFound)),
            (LibraryError::BadPath { path: "a".into(), problem: "b" }.into(), Status::Failed, None),
        ] {
            let failure = Failure::from(&error);
            assert_eq!((failure.status, failure.code), (status, code), "{failure}");
        }
    }
}
