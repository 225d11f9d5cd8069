//! Retries of library operations that fail for a while: a full disk, or a database that is being reopened.
//!
//! A full disk is retried without limit, since the progress of the download reports it. Other temporary errors are
//! retried up to the provider timeout.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::context::DownloadContext;
use super::progress::{Phase, Progress};
use crate::library::error::LibraryError;

/// Time between attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time between log messages about waiting downloads.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A wait for the library.
#[derive(Debug, Clone, Copy)]
pub(super) struct StorageWait {
    since: Instant,
    /// The time of the next attempt.
    pub(super) until: Instant,
    /// Whether the disk is full.
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
        if before.is_none_or(|wait| wait.full != full) {
            context.log_wait(&error);
        }
        Ok(Self { since, until: now + RETRY_INTERVAL, full })
    }
}

impl DownloadContext {
    /// Logs that downloads wait for the library, once for all downloads.
    fn log_wait(&self, error: &LibraryError) {
        let before = self.wait_logged.lock().replace(Instant::now());
        if before.is_none_or(|before| before.elapsed() >= LOG_INTERVAL) {
            tracing::info!(%error, "downloads wait for storage");
        }
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
