//! Starts transfers and shares them: callers that request the same file wait for the same transfer, which stops when
//! the last of them is dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::context::DownloadContext;
use super::error::DownloadError;
use super::provider_dialer::ProviderDialer;
use super::request::{DownloadRequest, Progress};
use super::settings::DownloadSettings;
use super::transfer;
use super::wanted::{Wanted, WantedPart};
use crate::change::ChangeNotifier;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::model::layout::MAX_PIECE_SIZE;
use enjambre_core::{Dialer, FileId, PeerId};

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
        let budget = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        let proof_budget = Arc::new(Semaphore::new(PROOF_PIECES * MAX_PIECE_SIZE as usize / 1024));
        let (wait_logged, full_disk) = (Mutex::default(), Mutex::default());
        let dialer = ProviderDialer::new(dialer);
        let context = DownloadContext {
            library,
            dialer,
            settings,
            limit,
            budget,
            proof_budget,
            me,
            wait_logged,
            full_disk,
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
        let transfer = Arc::new(Running {
            progress: updates,
            wanted: Arc::clone(&wanted),
            outcome,
            _stop: cancel.clone().drop_guard(),
        });
        entry.insert_entry(Arc::downgrade(&transfer));
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let result = transfer::run(&context, &request, &progress, &wanted, &cancel).await;
            guard.0.set(result.map(drop).map_err(Arc::new));
        });
        Download { running: transfer }
    }

    /// Stops all downloads and waits until their verified pieces are stored.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
