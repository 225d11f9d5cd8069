//! How a command ends when it does not succeed: an exit status and one line for people.

use std::fmt;
use std::process::ExitCode;

use enjambre_core::readable::with_causes;
use serde::{Deserialize, Serialize};

use crate::config::error::ConfigError;

/// The exit statuses other than 0, which is: done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Status {
    /// 1: it was tried and failed.
    Failed = 1,
    /// 2: the command line or the configuration is wrong.
    Usage = 2,
    /// 3: there is no such file.
    NotFound = 3,
    /// 4: no tracker or no provider can be reached.
    Unreachable = 4,
}

/// Why a command did not succeed. Can be sent to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit status.
    pub status: Status,
    /// What was tried, why it did not work and what to do next, in one line.
    pub message: String,
}

impl Failure {
    /// A failure with this status.
    pub fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, message: one_line(&message.to_string()) }
    }

    /// Exit status 1.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Status::Failed, message)
    }

    /// Exit status 2.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Status::Usage, message)
    }

    /// Exit status 3.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Status::NotFound, message)
    }

    /// Exit status 4.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(Status::Unreachable, message)
    }

    /// An error with all its causes, under this status.
    pub fn from_error(status: Status, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(status, with_causes(error))
    }

    /// The same, with what was tried in front.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = one_line(&format!("{what}: {}", self.message));
        self
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status as u8)
    }
}

/// Others write parts of it, so what controls a terminal is replaced.
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
    fn a_failure_is_one_line_with_all_causes() {
        let cause = std::io::Error::other("the disk\nis gone");
        let error = ConfigError::Read { path: "/x".into(), source: cause };
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "the configuration /x cannot be read: the disk; is gone");
        assert_eq!(failure.status as u8, 2);
    }

    #[test]
    fn what_a_remote_says_does_not_control_the_terminal() {
        let failure = Failure::failed("it said \u{1b}[2J\u{7}").context("\u{9b}1m");
        assert!(!failure.message.contains(char::is_control), "{failure:?}");
    }
}
