//! Resources that all transfers of a peer share, and retries of library operations that fail for a while: a full disk, or a
//! database that is being reopened.
//!
//! A full disk is retried without limit, since the progress of the download reports it. Other temporary errors are
//! retried up to the provider timeout.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::activity::Activities;
use super::metrics::DownloadMetrics;
use super::provider::ProviderError;
use super::provider_dialer::ProviderDialer;
use super::request::{Phase, Progress};
use super::settings::DownloadSettings;
use crate::library::error::LibraryError;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::{PeerId, PieceLayout};

/// Minimum rate of a reply in bytes per second, after the silence timeout.
const MIN_RATE: u64 = 16 * 1024;
/// The longest limit of a whole request, as a multiple of the silence timeout.
const MAX_REQUEST_TIMEOUTS: u32 = 6;
/// Time between attempts of library operations.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time between log messages about waiting downloads.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Resources that all transfers of a peer share.
#[derive(Debug)]
pub(super) struct DownloadContext {
    pub(super) library: Arc<Library>,
    pub(super) dialer: ProviderDialer,
    pub(super) settings: DownloadSettings,
    pub(super) limit: Arc<BandwidthLimit>,
    /// In units of 1 KiB.
    pub(super) budget: Arc<Semaphore>,
    /// The whole budget.
    pub(super) budget_units: usize,
    /// The same for last pieces that prove a size, so that slow provers do not use up the budget of downloads.
    pub(super) proof_budget: Arc<Semaphore>,
    /// The id of this peer, which is not a provider for itself.
    pub(super) me: Option<PeerId>,
    /// The time of the last log message about a storage wait.
    pub(super) wait_logged: Mutex<Option<Instant>>,
    /// The last failure because of a full disk, which names the disk.
    pub(super) full_disk: Mutex<String>,
    pub(super) activities: Activities,
    pub(super) metrics: DownloadMetrics,
}

impl DownloadContext {
    /// Limits the total time of a request whose reply has at most this many bytes. A single byte now and then, or other
    /// traffic on the connection, keeps the silence timeout from expiring, so a provider could otherwise leave a request
    /// open for as long as it likes.
    pub(super) async fn limit_time<T>(
        &self,
        bytes: u64,
        reply: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ProviderError> {
        let silence = self.settings.silence_timeout;
        let limit = silence + Duration::from_secs(bytes / MIN_RATE);
        let replied = timeout(limit.min(silence * MAX_REQUEST_TIMEOUTS), reply).await;
        replied
            .unwrap_or_else(|_| Err(ProviderError::Refused("no reply within the request timeout".to_owned())))
    }

    /// The share of the budget for one piece of this layout.
    pub(super) fn piece_units(layout: PieceLayout) -> u32 {
        layout.piece_size() / 1024
    }

    /// Logs that downloads wait for the library, once for all downloads.
    fn log_wait(&self, error: &LibraryError) {
        let before = self.wait_logged.lock().replace(Instant::now());
        if before.is_none_or(|before| before.elapsed() >= LOG_INTERVAL) {
            tracing::info!(%error, "downloads wait for storage");
        }
    }
}

/// A wait for the library.
#[derive(Debug, Clone, Copy)]
pub(super) struct StorageWait {
    since: Instant,
    pub(super) until: Instant,
    pub(super) full: bool,
}

impl StorageWait {
    /// Returns the wait after `error`, as a continuation of `before`, or the error if it is permanent or timed out.
    pub(super) fn after(
        before: Option<Self>,
        error: LibraryError,
        context: &DownloadContext,
    ) -> Result<Self, LibraryError> {
        let now = Instant::now();
        let full = matches!(error, LibraryError::Full { .. });
        // A change of the cause restarts the timeout.
        let since = before.filter(|wait| wait.full == full).map_or(now, |wait| wait.since);
        if !full && (!error.is_temporary() || now >= since + context.settings.provider_timeout) {
            return Err(error);
        }
        if let LibraryError::Full(source) = &error {
            // The last cause names a path on the disk.
            let causes = std::iter::successors(source.source(), |cause| cause.source());
            *context.full_disk.lock() = causes.last().map_or_else(|| source.to_string(), ToString::to_string);
        }
        if before.is_none_or(|wait| wait.full != full) {
            context.log_wait(&error);
        }
        Ok(Self { since, until: now + RETRY_INTERVAL, full })
    }
}

/// Runs a library operation and retries it while the disk is full or the error is temporary. The progress shows a full
/// disk.
pub(super) async fn retry_storage<T, F: Future<Output = Result<T, LibraryError>>>(
    context: &DownloadContext,
    progress: &watch::Sender<Progress>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, LibraryError> {
    let mut wait = None;
    let before = progress.borrow().phase;
    loop {
        let error = match attempt().await {
            Ok(done) => {
                if wait.is_some() {
                    progress.send_modify(|progress| progress.phase = before);
                }
                return Ok(done);
            }
            Err(error) => error,
        };
        let next = StorageWait::after(wait, error, context)?;
        wait = Some(next);
        if next.full {
            progress.send_modify(|progress| progress.phase = Phase::DiskFull);
        }
        sleep(RETRY_INTERVAL).await;
    }
}
