//! What a remote may do before it is cut off, and how long things may take.
//!
//! Sizes are numbers of bytes or texts like `"64KiB"`, times texts like `"10s"`.

use std::time::Duration;

use enjambre_core::transport::MessageLimits;
use serde::Deserialize;

/// The limits of a transport; the defaults are safe on an open network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportSettings {
    /// The largest header in bytes.
    #[serde(with = "size")]
    pub header: usize,
    /// The largest payload in bytes. At least the largest piece, 4 MiB.
    #[serde(with = "size")]
    pub payload: usize,
    /// The most frames in a message.
    pub frames: usize,
    /// The most requests in flight per connection, in each direction.
    pub in_flight: usize,
    /// The most bytes of replies that wait to be sent on one connection.
    #[serde(with = "size")]
    pub queued_per_connection: usize,
    /// The most bytes of replies that wait to be sent on all connections together.
    #[serde(with = "size")]
    pub queued_in_all: usize,
    /// The most accepted connections in all. The limit on open files may lower it. Where all are taken, one more from an
    /// address with few takes the place of one from the address with the most (for IPv6, from the /48 network).
    pub connections: usize,
    /// The most accepted connections from one address (for IPv6, from one /64 network).
    pub connections_per_address: usize,
    /// How long connecting and the greeting may take.
    #[serde(with = "time")]
    pub handshake: Duration,
    /// After how long a connection is closed over which nothing goes.
    #[serde(with = "time")]
    pub idle: Duration,
    /// A connection is closed that takes less than 256 KiB of what waits for it in this time, or that has begun to send a
    /// request and not come to its end.
    #[serde(with = "time")]
    pub stalled: Duration,
    /// The first pause after a failed attempt to connect; each further one is twice as long.
    #[serde(with = "time")]
    pub reconnect_first: Duration,
    /// The longest pause between two attempts to connect.
    #[serde(with = "time")]
    pub reconnect_longest: Duration,
}

impl Default for TransportSettings {
    fn default() -> Self {
        let limits = MessageLimits::default();
        Self {
            header: limits.header,
            payload: limits.payload,
            frames: 8,
            in_flight: limits.in_flight,
            queued_per_connection: 8 << 20,
            queued_in_all: 32 << 20,
            connections: 1024,
            connections_per_address: 64,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(5 * 60),
            stalled: Duration::from_secs(30),
            reconnect_first: Duration::from_millis(100),
            reconnect_longest: Duration::from_secs(10),
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transport.{key} = {value} cannot be used: {problem}")]
pub struct InvalidSetting {
    /// Which setting.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl TransportSettings {
    /// Checks that the values make sense.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let refuse = |key, value: String, problem: String| Err(InvalidSetting { key, value, problem });
        let counts = [
            ("in_flight", self.in_flight, 1, 65_536),
            ("frames", self.frames, 3, 1024),
            ("connections", self.connections, 1, 1 << 20),
            ("connections_per_address", self.connections_per_address, 1, 1 << 20),
            ("header", self.header, 1024, 16 << 20),
            ("payload", self.payload, MessageLimits::default().payload, 1 << 30),
            ("queued_per_connection", self.queued_per_connection, self.header + self.payload, 1 << 40),
            ("queued_in_all", self.queued_in_all, 2 * (self.header + self.payload), 1 << 40),
        ];
        for (key, value, least, most) in counts {
            if value < least || value > most {
                return refuse(key, value.to_string(), format!("it must be from {least} to {most}"));
            }
        }
        let times = [
            ("handshake", self.handshake),
            ("idle", self.idle),
            ("stalled", self.stalled),
            ("reconnect_first", self.reconnect_first),
            ("reconnect_longest", self.reconnect_longest),
        ];
        for (key, value) in times {
            // A day and more is meant as "never", and sums of times must not overflow.
            if value < Duration::from_millis(1) || value > Duration::from_secs(366 * 86_400) {
                return refuse(key, format!("{value:?}"), "it must be from 1ms to 366days".to_owned());
            }
        }
        Ok(())
    }

    /// The part that every transport has.
    pub fn message_limits(&self) -> MessageLimits {
        MessageLimits { header: self.header, payload: self.payload, in_flight: self.in_flight }
    }
}

mod size {
    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Size {
            Bytes(usize),
            Text(String),
        }
        match Size::deserialize(deserializer)? {
            Size::Bytes(bytes) => Ok(bytes),
            Size::Text(text) => {
                let size = text.parse::<bytesize::ByteSize>().map_err(D::Error::custom)?;
                usize::try_from(size.as_u64()).map_err(D::Error::custom)
            }
        }
    }
}

mod time {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        humantime::parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_sizes_and_times_are_read_as_people_write_them() {
        TransportSettings::default().validate().unwrap();
        let text = "header = 32768\npayload = \"8MiB\"\nidle = \"1m 30s\"";
        let settings: TransportSettings = toml::from_str(text).unwrap();
        let expected = TransportSettings {
            header: 32_768,
            payload: 8 << 20,
            idle: Duration::from_secs(90),
            ..TransportSettings::default()
        };
        assert_eq!(settings, expected);
        assert!(toml::from_str::<TransportSettings>("headers = 1").is_err());
        assert!(toml::from_str::<TransportSettings>("idle = \"long\"").is_err());
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let refused = |settings: TransportSettings| settings.validate().unwrap_err().key;
        let default = TransportSettings::default;
        assert_eq!(refused(TransportSettings { in_flight: 0, ..default() }), "in_flight");
        assert_eq!(refused(TransportSettings { payload: 1 << 20, ..default() }), "payload");
        assert_eq!(refused(TransportSettings { queued_in_all: 1 << 20, ..default() }), "queued_in_all");
        assert_eq!(refused(TransportSettings { idle: Duration::ZERO, ..default() }), "idle");
        assert_eq!(refused(TransportSettings { stalled: Duration::MAX, ..default() }), "stalled");
    }
}
