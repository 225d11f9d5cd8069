//! Reasons for the end of a connection, and a rate-limited log of them.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use enjambre_core::PeerId;
use enjambre_core::transport::metrics::{EndReason, TransportMetrics};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::Instant;

use crate::open_files::OPEN_FILES_SETTING;

/// The remote listens or dials with another scheme, or is another program.
pub(crate) const OTHER_PROTOCOL: Disconnect =
    Disconnect::Protocol("the remote speaks another protocol; check the scheme and the port of the endpoint");

/// The reason for the end of a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Disconnect {
    #[error("closed by the remote")]
    Closed,
    #[error("closed locally")]
    Local,
    /// Closed with a [`ConnectionHandle`](enjambre_core::transport::ConnectionHandle).
    #[error("closed by the service")]
    ByService,
    #[error("idle timeout (transport.limits.idle_timeout)")]
    IdleTimeout,
    #[error("write timeout: the remote does not read its replies (transport.limits.stall_timeout)")]
    WriteTimeout,
    #[error("request timeout: the remote does not complete a request (transport.limits.stall_timeout)")]
    RequestTimeout,
    #[error("handshake timeout (transport.limits.handshake_timeout)")]
    HandshakeTimeout,
    #[error("too many connections {scope}; the limit is {limit} ({setting})")]
    TooManyConnections { scope: &'static str, limit: usize, setting: &'static str },
    #[error(
        "no connection can be accepted: the process reached its limit on open files ({OPEN_FILES_SETTING})"
    )]
    TooManyOpenFiles,
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    #[error("{what} of {actual} exceeds the limit of {limit}")]
    LimitExceeded { what: &'static str, limit: u64, actual: u64 },
    #[error("the node at this endpoint has the id {found} instead of {wanted}")]
    WrongNode { wanted: PeerId, found: PeerId },
    /// Not a source: the message contains it.
    #[error("{}", io_text(.0))]
    Io(io::Error),
}

/// Returns the text of an error in lower case and without the number of the operating system.
fn io_text(error: &io::Error) -> String {
    let mut text = error.to_string();
    if let Some(number) = error.raw_os_error() {
        text.truncate(text.trim_end_matches(&format!(" (os error {number})")).len());
        text.get_mut(..1).unwrap_or_default().make_ascii_lowercase();
    }
    text
}

impl From<io::Error> for Disconnect {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Disconnect {
    /// The reason why no connection was accepted.
    pub(crate) fn of_accept(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) if number == Errno::MFILE.raw_os_error() => Self::TooManyOpenFiles,
            _ => Self::Io(error),
        }
    }

    /// Checks a limit on a remote.
    pub(crate) fn check_limit(what: &'static str, limit: u64, actual: u64) -> Result<(), Self> {
        if actual > limit { Err(Self::LimitExceeded { what, limit, actual }) } else { Ok(()) }
    }

    /// The reason as it is counted.
    pub(crate) const fn end_reason(&self) -> EndReason {
        match self {
            Self::Closed => EndReason::Remote,
            Self::Local => EndReason::Local,
            Self::ByService => EndReason::Service,
            Self::IdleTimeout => EndReason::Idle,
            Self::WriteTimeout => EndReason::WriteTimeout,
            Self::RequestTimeout => EndReason::RequestTimeout,
            Self::HandshakeTimeout => EndReason::HandshakeTimeout,
            Self::TooManyConnections { .. } => EndReason::TooManyConnections,
            Self::TooManyOpenFiles => EndReason::TooManyFiles,
            Self::Protocol(_) => EndReason::ProtocolViolation,
            Self::LimitExceeded { .. } => EndReason::LimitExceeded,
            Self::WrongNode { .. } => EndReason::WrongNode,
            Self::Io(_) => EndReason::Io,
        }
    }

    /// Returns whether the remote is at fault.
    pub(crate) fn is_violation(&self) -> bool {
        match self {
            Self::Closed | Self::Local | Self::ByService | Self::IdleTimeout => false,
            Self::Io(error) => !matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
            ),
            _ => true,
        }
    }
}

/// Maximum number of lines in a [`PERIOD`].
const MAX_LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Period {
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

/// A log of violations that a hostile remote cannot flood.
#[derive(Debug, Default)]
pub(crate) struct DisconnectLog {
    period: Mutex<Period>,
}

impl DisconnectLog {
    /// Returns the number of suppressed lines before this one, or `None` if this line is suppressed, too.
    fn next_line(&self) -> Option<u64> {
        let mut period = self.period.lock();
        let now = Instant::now();
        if period.start.is_none_or(|start| now.duration_since(start) >= PERIOD) {
            period.start = Some(now);
            period.lines = 0;
        }
        if period.lines < MAX_LINES {
            period.lines += 1;
            return Some(std::mem::take(&mut period.suppressed));
        }
        period.suppressed += 1;
        None
    }

    /// Counts and logs the end of a connection.
    pub(crate) fn record(&self, metrics: &TransportMetrics, remote: &dyn Display, reason: &Disconnect) {
        metrics.end(reason.end_reason());
        if !reason.is_violation() {
            tracing::debug!(%remote, %reason, "connection ended");
            return;
        }
        if let Some(suppressed) = self.next_line() {
            tracing::warn!(%remote, %reason, suppressed, "connection aborted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_name_their_settings() {
        let reached = Disconnect::of_accept(Errno::MFILE.into()).to_string();
        assert!(reached.contains("open files") && reached.contains("LimitNOFILE"), "{reached}");
        let other = Disconnect::of_accept(Errno::CONNABORTED.into());
        assert!(matches!(other, Disconnect::Io(_)), "{other}");
    }

    #[tokio::test(start_paused = true)]
    async fn log_of_violations_is_rate_limited() {
        let log = DisconnectLog::default();
        assert_eq!((0..1000).filter_map(|_| log.next_line()).count(), MAX_LINES as usize);
        tokio::time::advance(PERIOD).await;
        assert_eq!(log.next_line(), Some(990));
        assert_eq!(log.next_line(), Some(0));
    }
}
