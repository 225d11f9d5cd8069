//! Errors of a configuration.

use std::path::PathBuf;

/// An invalid configuration. The message contains the key, the value and its origin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is unreadable.
    #[error("cannot read configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid TOML.
    #[error("invalid TOML at {}:{line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, starting at 1.
        line: usize,
        /// The problem.
        problem: String,
    },
    /// An argument of `--set` or an environment variable is malformed.
    #[error("{origin}: {problem}")]
    Assignment {
        /// `--set TEXT`, or the name of the environment variable.
        origin: String,
        /// The problem.
        problem: String,
    },
    /// The key does not exist.
    #[error("unknown key `{}` in {origin}; did you mean `{nearest}`?", single_line(.key))]
    UnknownKey {
        /// The key with its section.
        key: String,
        /// The layer that contains the key.
        origin: String,
        /// The most similar known key.
        nearest: String,
    },
    /// The value of a key is invalid.
    #[error("invalid value `{}` = {} (from {origin}): {}", single_line(.key), single_line(.value), single_line(.problem))]
    Value {
        /// The key with its section.
        key: String,
        /// The value as TOML.
        value: String,
        /// The layer that contains the value.
        origin: String,
        /// The problem.
        problem: String,
    },
}

/// Escapes the newlines of a value: an error message is a single line.
fn single_line(text: &str) -> String {
    text.replace('\n', "\\n")
}
