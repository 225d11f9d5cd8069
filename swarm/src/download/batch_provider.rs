//! A provider of small files: its connection, its failures, and how much is requested from it at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::provider::ProviderError;
use enjambre_core::{Connection, FileId, Provider};

/// Approximate size of the largest batch.
pub(super) const BATCH_BYTES: u64 = 512 * 1024;
/// Maximum number of batches in flight.
pub(super) const MAX_IN_FLIGHT: usize = 4;
/// Approximate size of the first batch of a provider, which is requested alone.
const FIRST_BATCH_BYTES: u64 = 64 * 1024;
/// What a file counts at least in the size of a reply, so that tiny files do not keep the window small.
pub(super) const FILE_BYTES: u64 = 1024;
/// Number of successive failures after which a provider is excluded.
const MAX_FAILURES: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(500);

pub(super) enum ConnectionState {
    Connecting,
    Active(Arc<dyn Connection>),
    BackedOff(Instant),
    Excluded,
}

pub(super) struct BatchProvider {
    pub(super) provider: Provider,
    pub(super) state: ConnectionState,
    pub(super) in_flight: usize,
    pub(super) late: usize,
    /// The time until the last reply.
    pub(super) latency: Duration,
    /// Approximate maximum number of bytes in flight. It grows by the size of each reply, so a provider that stops replying
    /// holds no more of the budget of all downloads than it has sent.
    window: u64,
    failures: u32,
    /// The number of returned files when this provider last checked all of them.
    pub(super) checked: Option<u64>,
}

impl BatchProvider {
    pub(super) const fn new(provider: Provider) -> Self {
        Self {
            provider,
            state: ConnectionState::Excluded,
            in_flight: 0,
            late: 0,
            latency: Duration::ZERO,
            window: FIRST_BATCH_BYTES,
            failures: 0,
            checked: None,
        }
    }

    /// The approximate size of the next batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        self.window.min(BATCH_BYTES)
    }

    /// Whether another batch may be requested.
    pub(super) const fn accepts_batch(&self) -> bool {
        self.late == 0 && (self.in_flight == 0 || self.in_flight < (self.window / BATCH_BYTES) as usize)
    }

    /// Records the time until a reply, and the size of the files in it.
    pub(super) fn on_reply(&mut self, latency: Duration, received: u64) {
        self.failures = 0;
        self.latency = latency;
        self.window = (self.window + received).min(BATCH_BYTES * MAX_IN_FLIGHT as u64);
    }

    /// Backs off or excludes the provider after a failed request for files of a collection. Returns whether it is excluded now.
    pub(super) fn on_error(&mut self, collection: FileId, error: ProviderError) -> bool {
        let is_invalid = matches!(error, ProviderError::InvalidData(_));
        let backed_off = matches!(self.state, ConnectionState::BackedOff(_));
        if matches!(self.state, ConnectionState::Excluded) || backed_off && !is_invalid {
            return false;
        }
        let peer = self.provider.peer;
        tracing::debug!(peer = %peer.short(), %error, "request for small files failed");
        self.failures += 1;
        self.state = match error {
            ProviderError::InvalidData(reason) => {
                tracing::warn!(%peer, id = %collection, reason, "provider banned: invalid data");
                ConnectionState::Excluded
            }
            _ if self.failures > MAX_FAILURES => ConnectionState::Excluded,
            ProviderError::Busy { retry_after } => ConnectionState::BackedOff(Instant::now() + retry_after),
            ProviderError::Unreachable(_) => ConnectionState::BackedOff(Instant::now() + BACKOFF),
            // The provider may not support this request.
            ProviderError::NotFound | ProviderError::Refused(_) | ProviderError::AlreadySent(_) => {
                ConnectionState::Excluded
            }
        };
        matches!(self.state, ConnectionState::Excluded)
    }
}
