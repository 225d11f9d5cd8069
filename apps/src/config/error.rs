//! What can be wrong with a configuration.

use std::path::PathBuf;

/// A configuration that cannot be used. Says which key, which value and where it came from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line} is not valid TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// An argument of `--set` or the value of an environment variable is not one.
    #[error("{origin}: {problem}")]
    Assignment {
        /// `--set TEXT`, or the name of the variable.
        origin: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such key.
    #[error("unknown key `{}` in {origin}; the nearest known key is `{nearest}`", in_a_line(.key))]
    UnknownKey {
        /// The key with its section.
        key: String,
        /// The layer that it is in.
        origin: String,
        /// A known key that looks like it.
        nearest: String,
    },
    /// A key has a value that it cannot have.
    #[error("`{}` = {} (from {origin}): {}", in_a_line(.key), in_a_line(.value), in_a_line(.problem))]
    Value {
        /// The key with its section.
        key: String,
        /// The value as TOML.
        value: String,
        /// The layer that it came from.
        origin: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A text of several lines is a value, too, and a message has one.
fn in_a_line(text: &str) -> String {
    text.replace('\n', "\\n")
}
