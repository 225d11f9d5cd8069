//! Types of configuration values with a text format: `"30s"`, `"50GiB"`, `"50MB/s"`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use enjambre_core::model::identity::{ParsePublicKeyError, PublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An invalid configuration value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {text:?}")]
pub struct ParseValueError {
    text: String,
    expected: &'static str,
}

fn invalid(text: &str, expected: &'static str) -> ParseValueError {
    ParseValueError { text: text.chars().take(80).collect(), expected }
}

macro_rules! as_text {
    ($name:ident, $expected:literal) => {
        impl $name {
            /// The description of a valid value, for errors.
            const EXPECTED: &str = $expected;
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = toml::Value::deserialize(deserializer)?;
                match value.as_str() {
                    Some(text) => text.parse().map_err(serde::de::Error::custom),
                    None => Err(serde::de::Error::custom(format_args!("expected {}", Self::EXPECTED))),
                }
            }
        }
    };
}

/// A duration from 1 ms to 100 years: `"500ms"`, `"30s"`, `"30d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// Creates a span of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Creates a span of whole days.
    pub const fn days(days: u64) -> Self {
        Self::seconds(days * 24 * 60 * 60)
    }

    /// Returns the duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        // The limit prevents overflow when the span is added to an instant.
        const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        // `M` is a month. Most users mean minutes.
        humantime::parse_duration(text)
            .ok()
            .filter(|_| !text.contains('M'))
            .filter(|span| (Duration::from_millis(1)..=LONGEST).contains(span))
            .map(Self)
            .ok_or_else(|| invalid(text, Self::EXPECTED))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&humantime::format_duration(self.0), f)
    }
}

as_text!(Span, "a duration such as \"30s\", \"5min\" or \"30d\"");

/// A number of bytes: `"50GiB"`, `"64KiB"`, `"1GB"`, `"4096B"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// Creates a size in bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the number of bytes as `usize`, saturating.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        // `b` is a bit. `ByteSize` reads it as a byte.
        text.parse::<ByteSize>()
            .ok()
            .filter(|_| !text.contains('b'))
            .map(|size| Self(size.as_u64()))
            .ok_or_else(|| invalid(text, Self::EXPECTED))
    }
}

/// Formats the exact size with the largest unit that divides it.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let decimal = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
        let whole =
            units.iter().chain(&decimal).find(|(unit, _)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match whole {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

as_text!(Size, "a size in bytes such as \"64KiB\", \"50GiB\" or \"1GB\"");

/// A rate in bytes per second, `"50MB/s"`, or `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate(Option<u64>);

impl Rate {
    /// Returns the bytes per second, at least 1, or `None` if unlimited.
    pub const fn get(self) -> Option<u64> {
        self.0
    }
}

impl FromStr for Rate {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        if text == "unlimited" {
            return Ok(Self(None));
        }
        text.strip_suffix("/s")
            .and_then(|size| size.trim_end().parse::<Size>().ok())
            .filter(|size| size.get() > 0)
            .map(|size| Self(Some(size.get())))
            .ok_or_else(|| invalid(text, Self::EXPECTED))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => write!(f, "{}/s", Size(rate)),
            None => f.write_str("unlimited"),
        }
    }
}

as_text!(Rate, "a rate in bytes such as \"50MB/s\", or \"unlimited\"");

/// A timeout: a duration, or `"none"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeout(Option<Span>);

impl Timeout {
    /// Returns the duration, or `None` without a timeout.
    pub fn get(self) -> Option<Duration> {
        self.0.map(Span::get)
    }
}

impl FromStr for Timeout {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        if text == "none" {
            return Ok(Self(None));
        }
        let error = |_| invalid(text, Self::EXPECTED);
        text.parse().map(|span| Self(Some(span))).map_err(error)
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(span) => fmt::Display::fmt(&span, f),
            None => f.write_str("none"),
        }
    }
}

as_text!(Timeout, "a duration such as \"500ms\" or \"5s\", or \"none\"");

/// An IP address with a port to listen on: `"127.0.0.1:7780"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress(SocketAddr);

impl ListenAddress {
    /// Returns the address.
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for ListenAddress {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        text.parse().map(Self).map_err(|_| invalid(text, Self::EXPECTED))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

as_text!(ListenAddress, "an IP address with a port such as \"127.0.0.1:7780\" or \"[::]:7780\"");

/// The public key of the authority of an invite-only swarm, or an empty string if the swarm is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuthorityKey(Option<PublicKey>);

impl AuthorityKey {
    /// Returns the key.
    pub const fn get(self) -> Option<PublicKey> {
        self.0
    }
}

impl FromStr for AuthorityKey {
    type Err = ParsePublicKeyError;

    fn from_str(text: &str) -> Result<Self, ParsePublicKeyError> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|key| Self(Some(key))) }
    }
}

impl fmt::Display for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |key| fmt::Display::fmt(key, f))
    }
}

as_text!(AuthorityKey, "64 hexadecimal digits in quotes");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_values_parse_to_the_same_value() {
        for text in ["30s", "1m", "500ms", "30days"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span, "{text}");
        }
        assert_eq!("30d".parse::<Span>().unwrap(), Span::days(30));
        for (text, bytes) in [("50GiB", 50 << 30), ("1GB", 1_000_000_000), ("4097B", 4097), ("0B", 0)] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.get(), bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("50MB/s".parse::<Rate>().unwrap().get(), Some(50_000_000));
        assert_eq!("50MB/s".parse::<Rate>().unwrap().to_string(), "50MB/s");
        assert_eq!("unlimited".parse::<Rate>().unwrap().get(), None);
        for (text, span) in [("none", None), ("1s 500ms", Some(Duration::from_millis(1500)))] {
            let timeout: Timeout = text.parse().unwrap();
            assert_eq!((timeout.get(), timeout.to_string().as_str()), (span, text));
        }
        for text in ["127.0.0.1:0", "[::1]:7780"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in ["".to_owned(), "0f".repeat(32)] {
            assert_eq!(text.parse::<AuthorityKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_values_are_rejected() {
        for text in ["", "30", "0s", "x", "-5s", "1000000000000y", "101years", "30M"] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
            assert!(text.parse::<Timeout>().is_err(), "{text:?}");
        }
        for text in ["", "GiB", "1XB", "-1B", "many", "10Mb", "1Kib"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
        for text in ["", "localhost:1", "127.0.0.1", ":7780", "::1:7780"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text:?}");
        }
        for text in ["", "50MB", "0B/s", "/s", "fast", "10Mb/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?}");
        }
    }
}
