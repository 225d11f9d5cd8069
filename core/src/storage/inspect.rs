//! Human-readable records (ordered named fields) and error chains.
//!
//! The caller decides how times and ids are formatted. Secrets are truncated.

use crate::model::time::UnixMillis;

/// A human-readable record.
pub type Fields = Vec<(&'static str, Field)>;

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// Text, for example a name, an endpoint or an id.
    Text(String),
    /// A number.
    Number(u64),
    /// A flag.
    Flag(bool),
    /// A time.
    Time(UnixMillis),
    /// Several values.
    List(Vec<Self>),
}

impl Field {
    /// A value formatted with [`Display`](std::fmt::Display).
    pub fn text(value: impl std::fmt::Display) -> Self {
        Self::Text(value.to_string())
    }

    /// Bytes as hexadecimal digits.
    pub fn hex(bytes: &[u8]) -> Self {
        Self::Text(hex::encode(bytes))
    }

    /// The first four bytes of a secret.
    pub fn secret(bytes: &[u8]) -> Self {
        Self::Text(format!("{}…", hex::encode(&bytes[..bytes.len().min(4)])))
    }
}

/// Formats an error and its sources, separated by colons. A source that its error already includes is omitted.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
