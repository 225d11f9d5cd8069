//! Starts transfers and shares them: callers that request the same file wait for the same transfer, which stops when
//! the last of them is dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::context::DownloadContext;
use super::error::DownloadError;
use super::request::{DownloadRequest, Progress};
use super::settings::DownloadSettings;
use super::transfer;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::model::layout::MAX_PIECE_SIZE;
use enjambre_core::{Dialer, FileId, PeerId};

#[derive(Debug)]
struct Running {
    progress: watch::Receiver<Progress>,
    outcome: watch::Receiver<Option<Result<(), Arc<DownloadError>>>>,
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

    /// Waits until the file is complete in the library or at its destination.
    pub async fn wait(&self) -> Result<(), Arc<DownloadError>> {
        let mut outcome = self.running.outcome.clone();
        let result = outcome.wait_for(Option::is_some).await.ok().and_then(|result| result.clone());
        // The result is missing if the task panicked.
        result.unwrap_or_else(|| Err(Arc::new(DownloadError::Cancelled)))
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
        let wait_logged = Mutex::default();
        let context = DownloadContext { library, dialer, settings, limit, budget, me, wait_logged };
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

    /// Starts a download, or joins a running download of the same file, which keeps its destination.
    pub fn get(&self, request: DownloadRequest) -> Download {
        let mut running = self.running.lock();
        running.retain(|_, transfer| transfer.strong_count() > 0);
        let entry = running.entry(request.id);
        if let Entry::Occupied(entry) = &entry
            && let Some(transfer) = entry.get().upgrade()
            && transfer.outcome.borrow().is_none()
            && transfer.outcome.has_changed().is_ok()
        {
            return Download { running: transfer };
        }
        let cancel = self.shutdown.child_token();
        let (progress, updates) = watch::channel(Progress::default());
        let (sender, outcome) = watch::channel(None);
        let transfer = Arc::new(Running { progress: updates, outcome, _stop: cancel.clone().drop_guard() });
        entry.insert_entry(Arc::downgrade(&transfer));
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let result = transfer::run(&context, &request, &progress, &cancel).await;
            sender.send_replace(Some(result.map(drop).map_err(Arc::new)));
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
