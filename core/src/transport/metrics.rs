//! Metrics of a transport: bytes, connections, and the reasons why connections ended.

use crate::metrics::{Counter, Gauge};

/// Why a connection ended, or was not established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// The remote closed it.
    Remote,
    /// This side closed it.
    Local,
    /// The service closed it, for example that of a revoked member.
    Service,
    /// It was idle for too long.
    Idle,
    /// The remote did not complete its handshake in time.
    HandshakeTimeout,
    /// The remote did not complete a request in time.
    RequestTimeout,
    /// The remote did not read its replies in time.
    WriteTimeout,
    /// Too many connections, in total or from one address.
    TooManyConnections,
    /// Too many open files.
    TooManyFiles,
    /// The remote sent a message that exceeds a limit.
    LimitExceeded,
    /// The remote violated the protocol.
    ProtocolViolation,
    /// The remote is another node than the one to be reached.
    WrongNode,
    /// An input or output error.
    Io,
}

impl EndReason {
    /// All reasons.
    pub const ALL: [Self; 13] = [
        Self::Remote,
        Self::Local,
        Self::Service,
        Self::Idle,
        Self::HandshakeTimeout,
        Self::RequestTimeout,
        Self::WriteTimeout,
        Self::TooManyConnections,
        Self::TooManyFiles,
        Self::LimitExceeded,
        Self::ProtocolViolation,
        Self::WrongNode,
        Self::Io,
    ];

    /// The name of the reason.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::Local => "local",
            Self::Service => "service",
            Self::Idle => "idle",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyFiles => "too_many_files",
            Self::LimitExceeded => "limit_exceeded",
            Self::ProtocolViolation => "protocol_violation",
            Self::WrongNode => "wrong_node",
            Self::Io => "io_error",
        }
    }
}

/// The metrics of a transport.
#[derive(Debug, Default)]
pub struct TransportMetrics {
    /// Bytes received after the handshake, before encryption.
    pub received: Counter,
    /// Bytes sent after the handshake, before encryption.
    pub sent: Counter,
    /// Open connections that remotes established.
    pub inbound: Gauge,
    /// Open connections that this side established.
    pub outbound: Gauge,
    ended: [Counter; EndReason::ALL.len()],
}

impl TransportMetrics {
    /// Counts the end of a connection, or a connection that was not established.
    pub fn end(&self, reason: EndReason) {
        self.ended[reason as usize].add(1);
    }

    /// Returns the number of connections that ended for this reason.
    pub fn ended(&self, reason: EndReason) -> u64 {
        self.ended[reason as usize].get()
    }
}
