//! Why a connection ended, and a log of it that a hostile remote cannot flood.

use std::io;
use std::time::Duration;

use enjambre_core::model::id::PeerId;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CutOff {
    /// The remote closed it.
    #[error("the remote closed the connection")]
    Closed,
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// Those above the transport closed it.
    #[error("its node is not to be talked to any more")]
    FromAbove,
    #[error("nothing went over it for too long")]
    Idle,
    #[error("it took nothing of what was sent to it for too long")]
    Stalled,
    #[error("a request took too long to come in")]
    Dawdling,
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("too many connections ({0})")]
    TooMany(&'static str),
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("a {what} of {actual} is more than the limit of {limit}")]
    Limit { what: &'static str, limit: u64, actual: u64 },
    #[error("another node answers there: {found}, and not {wanted}")]
    Another { wanted: PeerId, found: PeerId },
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

impl CutOff {
    /// Whether the remote did something that it must not do.
    pub(crate) fn is_offence(&self) -> bool {
        match self {
            Self::Closed | Self::Local | Self::FromAbove | Self::Idle => false,
            Self::Io(error) => !matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
            ),
            _ => true,
        }
    }
}

/// At most this many lines in a [`PERIOD`].
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Period {
    begin: Option<Instant>,
    lines: u32,
    left_out: u64,
}

/// Logs who was cut off and why, at a bounded rate.
#[derive(Debug, Default)]
pub(crate) struct CutOffLog {
    period: Mutex<Period>,
}

impl CutOffLog {
    /// Whether one more line may be written, and how many were left out before it.
    fn line(&self) -> Option<u64> {
        let mut period = self.period.lock();
        let now = Instant::now();
        if period.begin.is_none_or(|begin| now.duration_since(begin) >= PERIOD) {
            period.begin = Some(now);
            period.lines = 0;
        }
        if period.lines < LINES {
            period.lines += 1;
            return Some(std::mem::take(&mut period.left_out));
        }
        period.left_out += 1;
        None
    }

    /// Notes the end of a connection with a remote.
    pub(crate) fn note(&self, remote: &dyn std::fmt::Display, reason: &CutOff) {
        if !reason.is_offence() {
            tracing::debug!(%remote, %reason, "connection ended");
            return;
        }
        if let Some(left_out) = self.line() {
            tracing::warn!(%remote, %reason, left_out, "connection cut off");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_offences_is_a_few_lines() {
        let log = CutOffLog::default();
        assert_eq!((0..1000).filter_map(|_| log.line()).count(), LINES as usize);
        tokio::time::advance(PERIOD).await;
        assert_eq!(log.line(), Some(990));
        assert_eq!(log.line(), Some(0));
    }
}
