//! The name under which a file is published.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes of UTF-8.
pub const MAX_NAME: usize = 255;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a name for a file: {problem}")]
pub struct ParseNameError {
    /// The text as it was given, cut to a length that can be shown.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// A checked name: 1 to 255 bytes, no control characters, no path separators, not `.` or `..`, and nothing
/// that could be read as an id or the prefix of one (8 to 64 hexadecimal digits).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let refuse = |problem| ParseNameError { text: text.chars().take(80).collect(), problem };
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(refuse("a name has 1 to 255 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(refuse("a name has no control characters"));
        }
        if text.contains(['/', '\\']) || text == "." || text == ".." {
            return Err(refuse("a name is not a path"));
        }
        if (8..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refuse(
                "8 to 64 hexadecimal digits would be taken for an id; choose another with --name",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_ids_or_tricks_are_refused() {
        let long = "a".repeat(256);
        for text in ["", ".", "..", "a/b", "a\\b", "a\nb", "\u{7f}x", "deadbeef", &"0".repeat(64), &long] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
        for text in ["a", "deadbee", "deadbeef.iso", "Ærø 2026.tar", "...", &"0".repeat(65), &long[1..]] {
            assert!(text.parse::<Name>().is_ok(), "{text:?}");
        }
    }
}
