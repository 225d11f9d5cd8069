//! The name under which a file is published.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::id::is_id_or_prefix;

/// The maximum length of a name in bytes of UTF-8.
pub const MAX_NAME: usize = 255;

/// The text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid file name {text:?}: {problem}")]
pub struct ParseNameError {
    /// The text, truncated to 80 characters.
    pub text: String,
    /// The violated rule.
    pub problem: &'static str,
}

/// A valid name: 1 to 255 bytes without control characters and path separators, other than `.` and `..`, and not 8 to 64
/// hexadecimal digits, which the command line reads as an id or its prefix.
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
            return Err(refuse("the length is not 1 to 255 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(refuse("the name contains a control character"));
        }
        if text.contains(['/', '\\']) || text == "." || text == ".." {
            return Err(refuse("the name is a path"));
        }
        if is_id_or_prefix(text) {
            return Err(refuse(
                "8 to 64 hexadecimal digits are read as an id; choose another name with --name",
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
    fn path_id_and_control_characters_are_refused() {
        let long = "a".repeat(256);
        for text in ["", ".", "..", "a/b", "a\\b", "a\nb", "\u{7f}x", "deadbeef", &"0".repeat(64), &long] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
        for text in ["a", "deadbee", "deadbeef.iso", "Ærø 2026.tar", "...", &"0".repeat(65), &long[1..]] {
            assert!(text.parse::<Name>().is_ok(), "{text:?}");
        }
    }
}
