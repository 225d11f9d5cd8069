//! Errors of a configuration.

use std::path::PathBuf;

use enjambre_control::{Failure, Status};

use super::sections::NodeKind;

/// An invalid configuration. The message contains the key, the value and its origin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("invalid TOML at {}:{line}: {problem}", path.display())]
    Syntax { path: PathBuf, line: usize, problem: String },
    /// An argument of `--set` or an environment variable is malformed.
    #[error("{origin}: {problem}")]
    Assignment {
        /// `--set TEXT`, or the name of the environment variable.
        origin: String,
        problem: String,
    },
    /// A command for the other kind of node would create that node's data beside the configured one.
    #[error("{} configures a {}", path.display(), other_kind(*.configured))]
    OtherKind { path: PathBuf, configured: NodeKind },
    #[error("unknown key `{}` in {origin}; {}", single_line(.key), suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The key with its section.
        key: String,
        origin: String,
        /// The most similar known key, if there is one.
        nearest: Option<String>,
    },
    #[error("invalid value `{}` = {} (from {origin}): {}", single_line(.key), single_line(.value), single_line(.problem))]
    Value {
        /// The key with its section.
        key: String,
        value: String,
        origin: String,
        problem: String,
    },
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::from_error(Status::Usage, &error)
    }
}

const fn other_kind(configured: NodeKind) -> &'static str {
    match configured {
        NodeKind::Tracker => "tracker; run this command with the configuration of a peer",
        NodeKind::Peer => "peer; run this command on the tracker's machine, with the tracker's configuration",
    }
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "`enjambre config show` lists all keys".to_owned(),
    }
}

/// Escapes the newlines of a value: an error message is a single line.
fn single_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_one_line_with_all_causes() {
        let cause = std::io::Error::other("the disk\nis gone");
        let error = ConfigError::Read { path: "/x".into(), source: cause };
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "cannot read configuration file /x: the disk; is gone");
        assert_eq!(failure.status as u8, 2);
    }
}
