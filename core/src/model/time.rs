//! Wall-clock time stamps, and the format of durations.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A time in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The begin of the year 10000, the first time that RFC 3339 cannot represent.
    pub const YEAR_10000: Self = Self(253_402_300_800_000);

    /// Returns the time of a system clock, or 0 if it is before 1970.
    pub fn from_system(time: SystemTime) -> Self {
        Self::default() + time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    /// Returns the number of milliseconds since 1970-01-01 UTC.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the time since `earlier`, or `None` if `earlier` is later.
    pub fn checked_since(self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_millis)
    }

    /// Returns the time since `earlier`, or zero if `earlier` is later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Adds a duration and saturates at the largest time.
impl Add<Duration> for UnixMillis {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }
}

/// Subtracts a duration and saturates at 0.
impl Sub<Duration> for UnixMillis {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }
}

/// Returns a duration in whole milliseconds, at most [`u64::MAX`].
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Formats a duration for people, such as `1m 30s`, with a precision of 1 ms, or of 1 us below a second.
pub fn human(duration: Duration) -> impl fmt::Display {
    let precision = if duration < Duration::from_secs(1) { 1_000 } else { 1_000_000 };
    let nanos = duration.subsec_nanos() / precision * precision;
    humantime::format_duration(Duration::new(duration.as_secs(), nanos))
}

/// Durations of settings as text with a unit, for example `"500ms"` or `"10s"`, from 1 ms to 1 h, for `#[serde(with)]`.
pub mod text {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the duration.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    /// Reads a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .ok()
            .filter(|duration| (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(duration))
            .ok_or_else(|| D::Error::custom("expected a duration from \"1ms\" to \"1h\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_shown_without_insignificant_digits() {
        for (nanos, expected) in [
            (0, "0s"),
            (64_500, "64us"),
            (250_000_999, "250ms"),
            (1_500_999_999, "1s 500ms"),
            (90_000_000_000, "1m 30s"),
        ] {
            assert_eq!(human(Duration::from_nanos(nanos)).to_string(), expected);
        }
    }

    #[test]
    fn arithmetic_saturates() {
        let second = Duration::from_secs(1);
        assert_eq!(UnixMillis(5) + second, UnixMillis(1005));
        assert_eq!(UnixMillis(u64::MAX) + second, UnixMillis(u64::MAX));
        assert_eq!(UnixMillis(1005) - second, UnixMillis(5));
        assert_eq!(UnixMillis(5) - second, UnixMillis(0));
        assert_eq!(UnixMillis(1005).saturating_since(UnixMillis(5)), second);
        assert_eq!(UnixMillis(5).saturating_since(UnixMillis(1005)), Duration::ZERO);
        assert_eq!(UnixMillis(1005).checked_since(UnixMillis(5)), Some(second));
        assert_eq!(UnixMillis(5).checked_since(UnixMillis(1005)), None);
    }
}
