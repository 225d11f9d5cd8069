//! Starts transfers and shares them: callers that request the same file wait for the same transfer, which stops when
//! the last of them is dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::activity::{ActiveDownload, Activities};
use super::context::DownloadContext;
use super::error::DownloadError;
use super::metrics::DownloadMetrics;
use super::provider_dialer::ProviderDialer;
use super::request::{DownloadRequest, Progress};
use super::settings::DownloadSettings;
use super::transfer;
use super::view::{self, Details, TransferView};
use super::wanted::{Wanted, WantedPart};
use crate::change::ChangeNotifier;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::model::layout::MAX_PIECE_SIZE;
use enjambre_core::{Dialer, FileId, FileKind, PeerId, runtime};

/// How long observers wait for a transfer that is busy with its storage.
const VIEW_TIMEOUT: Duration = Duration::from_millis(500);
/// Number of pieces of the largest size that may be requested as proofs.
const PROOF_PIECES: usize = 16;

/// The result of a transfer, set once. Wakes its waiters in order, for reproducible simulations.
#[derive(Debug, Default)]
struct Outcome {
    result: OnceLock<Result<(), Arc<DownloadError>>>,
    is_set: ChangeNotifier,
}

impl Outcome {
    /// Sets the result unless there is one.
    fn set(&self, result: Result<(), Arc<DownloadError>>) {
        let _ = self.result.set(result);
        self.is_set.notify();
    }
}

/// Sets the outcome when the task of a transfer ends, even by a panic.
struct OutcomeGuard(Arc<Outcome>);

impl Drop for OutcomeGuard {
    fn drop(&mut self) {
        self.0.set(Err(Arc::new(DownloadError::Cancelled)));
    }
}

#[derive(Debug)]
struct Running {
    announced_as: FileId,
    progress: watch::Receiver<Progress>,
    wanted: Arc<Wanted>,
    outcome: Arc<Outcome>,
    /// Cancels the transfer when the last waiter is dropped.
    _stop: DropGuard,
}

/// Downloads files into the library.
#[derive(Debug)]
pub struct Downloader {
    pub(super) context: Arc<DownloadContext>,
    running: Mutex<HashMap<FileId, Weak<Running>>>,
    tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

/// A handle to a download. When all handles of a download are dropped, it stops and keeps its verified pieces.
pub struct Download {
    running: Arc<Running>,
}

impl Download {
    /// Returns a receiver of the progress.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.running.progress.clone()
    }

    /// Requests these bytes before others until the returned value is dropped.
    pub(super) fn want(&self, bytes: Range<u64>) -> WantedPart {
        self.running.wanted.add(bytes)
    }

    /// Waits until the file is complete in the library or at its destination.
    pub async fn wait(&self) -> Result<(), Arc<DownloadError>> {
        let outcome = &self.running.outcome;
        outcome.is_set.wait_until(|| outcome.result.get().is_some()).await;
        outcome.result.get().cloned().unwrap_or_else(|| Err(Arc::new(DownloadError::Cancelled)))
    }
}

impl Downloader {
    /// Creates a downloader for this library. The peer `me` is skipped as a provider.
    pub fn new(
        library: Arc<Library>,
        dialer: Arc<Dialer>,
        limit: Arc<BandwidthLimit>,
        me: Option<PeerId>,
        settings: DownloadSettings,
    ) -> Self {
        // At least one piece of maximum size.
        let units = (settings.budget_bytes / 1024).max(MAX_PIECE_SIZE as usize / 1024);
        let budget_units = units.min(Semaphore::MAX_PERMITS);
        let budget = Arc::new(Semaphore::new(budget_units));
        let proof_budget = Arc::new(Semaphore::new(PROOF_PIECES * MAX_PIECE_SIZE as usize / 1024));
        let (wait_logged, full_disk) = (Mutex::default(), Mutex::default());
        let dialer = ProviderDialer::new(dialer);
        let context = DownloadContext {
            library,
            dialer,
            settings,
            limit,
            budget,
            budget_units,
            proof_budget,
            me,
            wait_logged,
            full_disk,
            activities: Activities::default(),
            metrics: DownloadMetrics::default(),
        };
        Self {
            context: Arc::new(context),
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// The library that files are downloaded into.
    pub fn library(&self) -> &Arc<Library> {
        &self.context.library
    }

    /// The reason of the last wait for a full disk, with a path on that disk.
    pub fn full_disk(&self) -> String {
        self.context.full_disk.lock().clone()
    }

    /// The metrics.
    pub fn metrics(&self) -> &DownloadMetrics {
        &self.context.metrics
    }

    /// Returns the number of bytes that are requested or received and not yet written.
    pub fn buffered_bytes(&self) -> u64 {
        let free = self.context.budget.available_permits();
        1024 * self.context.budget_units.saturating_sub(free) as u64
    }

    /// Starts a download, or joins a running download of the same file, which keeps its destination.
    pub fn get(&self, request: DownloadRequest) -> Download {
        let mut running = self.running.lock();
        running.retain(|_, transfer| transfer.strong_count() > 0);
        let entry = running.entry(request.id);
        if let Entry::Occupied(entry) = &entry
            && let Some(transfer) = entry.get().upgrade()
            && transfer.outcome.result.get().is_none()
        {
            return Download { running: transfer };
        }
        let cancel = self.shutdown.child_token();
        let (progress, updates) = watch::channel(Progress::default());
        let (outcome, wanted) = (Arc::new(Outcome::default()), Arc::new(Wanted::default()));
        let guard = OutcomeGuard(Arc::clone(&outcome));
        let DownloadRequest { announced_as, ref file, .. } = request;
        let activity = self.context.activities.enter(announced_as);
        let kind = if request.id == announced_as { file.kind } else { FileKind::Collection };
        activity.show(file.name.clone(), kind, updates.clone());
        let transfer = Arc::new(Running {
            announced_as,
            progress: updates,
            wanted: Arc::clone(&wanted),
            outcome,
            _stop: cancel.clone().drop_guard(),
        });
        entry.insert_entry(Arc::downgrade(&transfer));
        let context = Arc::clone(&self.context);
        let span = tracing::info_span!("download", id = %request.id.short());
        let work = async move {
            let result = transfer::run(&context, &request, &progress, &wanted, &activity, &cancel).await;
            guard.0.set(result.map(drop).map_err(Arc::new));
        };
        runtime::spawn_in(&self.tasks, work.instrument(span));
        Download { running: transfer }
    }

    /// Lists the running downloads in the order of their ids.
    pub fn active(&self) -> Vec<ActiveDownload> {
        self.context.activities.all().iter().filter_map(|activity| activity.describe()).collect()
    }

    /// Returns the progress of the running downloads, with the current values marked as seen.
    pub(super) fn progress(&self) -> Vec<watch::Receiver<Progress>> {
        let mut progress: Vec<_> =
            self.context.activities.all().iter().filter_map(|activity| activity.progress()).collect();
        progress.iter_mut().for_each(watch::Receiver::mark_unchanged);
        progress
    }

    /// Notified when a download starts or ends.
    pub(super) fn changes(&self) -> &Arc<ChangeNotifier> {
        &self.context.activities.changes
    }

    /// Waits until nothing downloads this file or directory.
    pub(super) async fn ended(&self, id: &FileId) {
        self.changes().wait_until(|| self.context.activities.get(id).is_none()).await;
    }

    /// Describes the sources and the pieces of a file or directory.
    pub async fn details(&self, id: &FileId) -> Details {
        let running: Vec<_> = self.running.lock().iter().map(|(id, weak)| (*id, weak.clone())).collect();
        let asked = running.into_iter().filter_map(|(transfer, running)| {
            let is_asked = |running: &Arc<Running>| {
                running.announced_as == *id && running.outcome.result.get().is_none()
            };
            let running = running.upgrade().filter(is_asked)?;
            let (view, is_whole) = (running.wanted.ask(), transfer == *id);
            Some(async move {
                let view: Option<TransferView> = timeout(VIEW_TIMEOUT, view).await.ok()?.ok();
                Some((view?, is_whole))
            })
        });
        let views = futures::future::join_all(asked).await.into_iter().flatten();
        let delivered =
            self.context.activities.get(id).map_or_else(Vec::new, |activity| activity.delivered());
        view::merge(self.library(), id, views.collect(), delivered).await
    }

    /// Stops all downloads and waits until their verified pieces are stored.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
