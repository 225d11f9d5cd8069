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

/// Returns the problem that an error of `toml` describes, in the terms of a configuration file instead of Rust.
pub(crate) fn problem(error: &toml::de::Error) -> String {
    let text = error.message().replace('\n', "; ");
    let is_mismatch = text.starts_with("invalid type: ") || text.starts_with("invalid value: ");
    // The error of a configuration contains the value.
    if let Some((_, expected)) = text.rsplit_once(", expected ").filter(|_| is_mismatch) {
        return format!("expected {}", expected_value(expected));
    }
    if text.starts_with("unknown variant ")
        && let Some((_, expected)) = text.split_once(", expected ")
    {
        return format!("expected {}", expected.replace('`', "\""));
    }
    for kind in ["unknown", "missing", "duplicate"] {
        if let Some(rest) = text.strip_prefix(&format!("{kind} field ")) {
            return format!("{kind} key {rest}");
        }
    }
    text
}

/// Describes a type of `serde`.
fn expected_value(expected: &str) -> String {
    let (least, number) = match expected.strip_prefix("a nonzero ") {
        Some(number) => (1, number),
        None => (0, expected),
    };
    let most = match number {
        "u8" => u8::MAX.into(),
        "u16" => u16::MAX.into(),
        "u32" => u32::MAX,
        "u64" | "usize" => return format!("a whole number of at least {least}"),
        "i8" | "i16" | "i32" | "i64" | "isize" => return "a whole number".to_owned(),
        "f32" | "f64" => return "a number".to_owned(),
        "a boolean" => return "true or false".to_owned(),
        "path string" => return "a path in quotes".to_owned(),
        "string only" => return "a string".to_owned(),
        "a sequence" => return "a list".to_owned(),
        other if other == "a map" || other.starts_with("struct ") => return "a table".to_owned(),
        other => return other.to_owned(),
    };
    format!("a whole number from {least} to {most}")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::config::sections::{AdmissionMode, TrackerSection, TransportLimits};

    #[track_caller]
    fn assert_problem<T: DeserializeOwned>(value: &str, expected: &str) {
        #[derive(Deserialize)]
        struct Section<T> {
            #[serde(rename = "key")]
            _key: T,
        }
        let error = toml::from_str::<Section<T>>(&format!("key = {value}")).err().unwrap();
        assert_eq!(problem(&error), expected, "{value}");
    }

    #[test]
    fn problem_with_a_value_names_no_rust_type() {
        assert_problem::<usize>("-1", "expected a whole number of at least 0");
        assert_problem::<u32>("1.5", "expected a whole number from 0 to 4294967295");
        assert_problem::<std::num::NonZeroU32>("0", "expected a whole number from 1 to 4294967295");
        assert_problem::<i64>("\"x\"", "expected a whole number");
        assert_problem::<bool>("1", "expected true or false");
        assert_problem::<String>("true", "expected a string");
        assert_problem::<PathBuf>("3", "expected a path in quotes");
        assert_problem::<Vec<bool>>("true", "expected a list");
        assert_problem::<TransportLimits>("3", "expected a table");
        assert_problem::<AdmissionMode>("\"some\"", "expected \"open\" or \"invite\"");
        assert_problem::<toml::Table>("3", "expected a table");
        assert_problem::<TrackerSection>(
            "{ leese = 1 }",
            "unknown key `leese`, expected one of `data_dir`, `group_access`, `lease`, `retention`, `sessions_per_address`, `lookup_cache`, `announced_hosts`, `store`",
        );
    }

    #[test]
    fn failure_is_one_line_with_all_causes() {
        let cause = std::io::Error::other("the disk\nis gone");
        let error = ConfigError::Read { path: "/x".into(), source: cause };
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "cannot read configuration file /x: the disk; is gone");
        assert_eq!(failure.status as u8, 2);
    }
}
