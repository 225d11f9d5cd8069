//! Limits and timeouts.

use std::time::Duration;

use enjambre_core::MessageLimits;
use enjambre_core::model::time::human;

/// The limits and timeouts of a transport. The defaults are safe for public networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportSettings {
    /// Maximum size of a header in bytes.
    pub header: usize,
    /// Maximum size of a payload in bytes, at least that of the largest piece, 4 MiB.
    pub payload: usize,
    /// Maximum number of frames per ZeroMQ message.
    pub frames: usize,
    /// Maximum number of outstanding requests per connection, in each direction.
    pub in_flight: usize,
    /// Maximum number of queued reply bytes per connection.
    pub queued_per_connection: usize,
    /// Maximum number of queued reply bytes of all connections.
    pub queued_total: usize,
    /// Maximum number of accepted connections; the limit on open files may lower it. If all are in use, a connection from an
    /// address with few connections replaces one from the address (for IPv6, the /48 network) with the most.
    pub connections: usize,
    /// Maximum number of accepted connections per address (for IPv6, per /64 network).
    pub connections_per_address: usize,
    /// Maximum duration of connecting and the handshake.
    pub handshake_timeout: Duration,
    /// The time without traffic after which a connection is closed.
    pub idle_timeout: Duration,
    /// Maximum time for a remote to read 256 KiB of its queued replies, and to send a complete request.
    pub stall_timeout: Duration,
    /// The delay after the first failed connection attempt. It doubles with each further failure.
    pub reconnect_first: Duration,
    /// Maximum delay between connection attempts.
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
            queued_total: 32 << 20,
            connections: 1024,
            connections_per_address: 64,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(5 * 60),
            stall_timeout: Duration::from_secs(30),
            reconnect_first: Duration::from_millis(100),
            reconnect_longest: Duration::from_secs(10),
        }
    }
}

/// An invalid setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid setting transport.limits.{key} = {value}: {problem}")]
pub struct InvalidSetting {
    /// The name of the setting.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// The problem and the valid values.
    pub problem: String,
}

impl TransportSettings {
    /// Checks the values.
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
            ("queued_total", self.queued_total, 2 * (self.header + self.payload), 1 << 40),
        ];
        for (key, value, least, most) in counts {
            if value < least || value > most {
                return refuse(key, value.to_string(), format!("the value must be from {least} to {most}"));
            }
        }
        let times = [
            ("handshake_timeout", self.handshake_timeout),
            ("idle_timeout", self.idle_timeout),
            ("stall_timeout", self.stall_timeout),
            ("reconnect_first", self.reconnect_first),
            ("reconnect_longest", self.reconnect_longest),
        ];
        for (key, value) in times {
            // Sums of durations must not overflow.
            if value < Duration::from_millis(1) || value > Duration::from_secs(366 * 86_400) {
                return refuse(
                    key,
                    human(value).to_string(),
                    "the value must be from 1ms to 366days".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// Returns the limits on messages.
    pub fn message_limits(&self) -> MessageLimits {
        MessageLimits { header: self.header, payload: self.payload, in_flight: self.in_flight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        TransportSettings::default().validate().unwrap();
    }

    #[test]
    fn invalid_values_are_reported_with_their_key() {
        let refused = |settings: TransportSettings| settings.validate().unwrap_err().key;
        let default = TransportSettings::default;
        assert_eq!(refused(TransportSettings { in_flight: 0, ..default() }), "in_flight");
        assert_eq!(refused(TransportSettings { payload: 1 << 20, ..default() }), "payload");
        assert_eq!(refused(TransportSettings { queued_total: 1 << 20, ..default() }), "queued_total");
        assert_eq!(refused(TransportSettings { idle_timeout: Duration::ZERO, ..default() }), "idle_timeout");
        assert_eq!(refused(TransportSettings { stall_timeout: Duration::MAX, ..default() }), "stall_timeout");
    }
}
