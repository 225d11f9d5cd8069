//! Records in a form for people, whatever they are: fields with a name and a value each, in their order.
//!
//! What writes them down decides how a time or an id looks. Secrets are only there in part. And errors with their causes.

/// A record for people.
pub type Fields = Vec<(&'static str, Field)>;

/// A value of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A name, an endpoint, an id in hexadecimal digits, a word.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// Milliseconds since 1970-01-01 UTC.
    Time(u64),
    /// Several values.
    List(Vec<Self>),
}

impl Field {
    /// What has a text of its own.
    pub fn text(value: impl std::fmt::Display) -> Self {
        Self::Text(value.to_string())
    }

    /// Bytes in hexadecimal digits.
    pub fn hex(bytes: &[u8]) -> Self {
        Self::Text(hex::encode(bytes))
    }

    /// The beginning of bytes that nobody else may know.
    pub fn secret(bytes: &[u8]) -> Self {
        Self::Text(format!("{}…", hex::encode(&bytes[..bytes.len().min(4)])))
    }
}

/// An error with all its causes, as one text. Some errors repeat their source in their own text.
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
