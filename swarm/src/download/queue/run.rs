//! Runs the entries of the download queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::state::{Inner, Run, RunPhase, State};
use crate::download::error::DownloadError;
use crate::download::get::{GetRequest, get};
use crate::download::request::Progress;
use crate::library::DownloadState;
use crate::library::error::LibraryError;
use enjambre_core::FileId;
use enjambre_core::runtime;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::storage::inspect::with_causes;

/// Maximum number of entries that are downloaded at the same time.
pub const MAX_ACTIVE: usize = 5;
/// Bounds of the delay before another attempt after a temporary failure.
const MIN_RETRY: Duration = Duration::from_secs(5);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Maximum number of characters of a stored error.
const MAX_ERROR: usize = 1000;

impl Inner {
    /// Stops the downloads that are not queued, and starts others as long as there are free places.
    pub(super) fn schedule(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let State { entries, runs, is_started, .. } = &mut *state;
        runs.retain(|id, run| {
            let is_queued = entries.is_queued(id);
            if !is_queued {
                run.stop.cancel();
            }
            is_queued || run.phase != RunPhase::Ready
        });
        if !*is_started || self.stop.is_cancelled() {
            return;
        }
        let mut active = runs.values().filter(|run| run.phase == RunPhase::Active).count();
        // Attempts without providers take long. Entries that were not tried yet come first, then the one whose attempt is oldest.
        let mut queued: Vec<_> = entries.queued().collect();
        queued.sort_by_key(|(id, _)| runs.get(id).map(|run| run.started));
        for (id, record) in queued {
            if active >= MAX_ACTIVE {
                break;
            }
            let is_ready = runs.get(id).is_none_or(|run| run.phase == RunPhase::Ready);
            if !is_ready {
                continue;
            }
            active += 1;
            let (done, total) = (self.stored_bytes(id, record), record.size);
            let (progress, updates) = watch::channel(Progress { done, total, ..Progress::default() });
            let (stop, retry) = (self.stop.child_token(), CancellationToken::new());
            let before = runs.remove(id);
            let backoff = before.as_ref().map_or(Backoff::new(MIN_RETRY, MAX_RETRY), |run| run.backoff);
            let error = before.and_then(|run| run.error);
            let phase = RunPhase::Active;
            let run = Run {
                phase,
                started: Instant::now(),
                progress: updates,
                error,
                backoff,
                stop: stop.clone(),
                retry,
            };
            runs.insert(*id, run);
            let request = GetRequest {
                id: *id,
                name: Some(record.name.clone()),
                kind: record.kind,
                size: record.size,
                output: None,
                force: false,
                durable: true,
            };
            runtime::spawn_in(&self.tasks, Arc::clone(self).run(request, progress, stop));
        }
    }

    /// Ends the delay before the next attempt.
    pub(super) fn retry_now(&self, id: &FileId) {
        if let Some(run) = self.state.lock().runs.get_mut(id) {
            run.backoff.reset();
            run.retry.cancel();
        }
    }

    /// One attempt, and the delay after it.
    async fn run(
        self: Arc<Self>,
        request: GetRequest,
        progress: watch::Sender<Progress>,
        stop: CancellationToken,
    ) {
        let (id, before) = (request.id, progress.borrow().done);
        let attempt = stop.run_until_cancelled(self.attempt(&request, &progress)).await;
        let mut is_ready = false;
        if let Some(Err(error)) = attempt {
            tracing::info!(%id, error, "download interrupted; will retry");
            let delay = self.state.lock().runs.get_mut(&id).map(|run| {
                if progress.borrow().done > before {
                    run.backoff.reset();
                }
                (run.phase, run.error) = (RunPhase::Delayed, Some(error));
                (run.backoff.next_jittered(), run.retry.clone())
            });
            self.changes.notify();
            self.schedule();
            if let Some((delay, retry)) = delay {
                let waiting = retry.run_until_cancelled(sleep(delay));
                is_ready = stop.run_until_cancelled(waiting).await.is_some();
            }
        }
        {
            let runs = &mut self.state.lock().runs;
            match runs.get_mut(&id) {
                Some(run) if is_ready => run.phase = RunPhase::Ready,
                _ => drop(runs.remove(&id)),
            }
        }
        self.changes.notify();
        self.schedule();
    }

    /// Downloads a file and records that it is finished. Returns a temporary failure.
    async fn attempt(
        self: &Arc<Self>,
        request: &GetRequest,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), String> {
        let id = request.id;
        let downloaded = get(&self.downloader, request, Arc::clone(&self.providers), progress).await;
        let (state, done, size) = match downloaded {
            Ok(bytes) => (DownloadState::Complete, bytes, bytes),
            Err(error) if is_temporary(&error) => return Err(with_causes(&*error)),
            Err(error) => {
                let error = with_causes(&*error);
                tracing::warn!(%id, error, "download failed");
                let Progress { done, total, .. } = *progress.borrow();
                (DownloadState::Failed(error.chars().take(MAX_ERROR).collect()), done, total)
            }
        };
        let finished = self.change(move |entries| {
            if entries.is_queued(&id) {
                entries.set_progress(&id, done, size);
                entries.finish(&id, state);
            }
            Ok(())
        });
        finished.await.map_err(|error| with_causes(&error))
    }
}

/// Whether another attempt may succeed.
fn is_temporary(error: &DownloadError) -> bool {
    match error {
        DownloadError::NoProviders { .. } | DownloadError::Cancelled => true,
        DownloadError::Library(LibraryError::Closed) => true,
        DownloadError::Library(error) => error.is_temporary(),
        // The queue accepts all sizes, but the download that it joined does not.
        DownloadError::TooLarge { .. } => true,
        DownloadError::NoMember(_) => false,
    }
}
