//! Failure of a command: an exit status and a message of one line.

use std::fmt;
use std::process::ExitCode;

use enjambre_core::storage::inspect::with_causes;
use serde::{Deserialize, Serialize};

use crate::config::error::ConfigError;

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
}

/// A failed command. It can be sent to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit status.
    pub status: Status,
    /// The failed action, its cause and the remedy, in one line.
    pub message: String,
}

impl Failure {
    /// Creates a failure with an exit status.
    pub fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, message: one_line(&message.to_string()) }
    }

    /// Creates a failure with exit status 1.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Status::Failed, message)
    }

    /// Creates a failure with exit status 2.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Status::Usage, message)
    }

    /// Creates a failure with exit status 3.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Status::NotFound, message)
    }

    /// Creates a failure with exit status 4.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(Status::Unreachable, message)
    }

    /// Creates the failure of a command that a signal interrupted.
    pub fn interrupted() -> Self {
        Self::failed("interrupted")
    }

    /// Creates a failure from an error with its chain of causes.
    pub fn from_error(status: Status, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(status, with_causes(error))
    }

    /// Prepends the failed action to the message.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = one_line(&format!("{what}: {}", self.message));
        self
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status as u8)
    }
}

/// Joins lines, and replaces control characters, because parts of a message can come from a remote.
fn one_line(text: &str) -> String {
    let line = text
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    line.replace(char::is_control, "\u{fffd}")
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

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let error: &(dyn std::error::Error + 'static) = error.as_ref();
        Self::from_error(Status::Failed, error)
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

    #[test]
    fn control_characters_are_replaced() {
        let failure = Failure::failed("remote: \u{1b}[2J\u{7}").context("\u{9b}1m");
        assert!(!failure.message.contains(char::is_control), "{failure:?}");
    }
}
