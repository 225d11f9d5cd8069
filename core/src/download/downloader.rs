//! Starts transfers and shares them: whoever wants the same file waits for the same transfer, which stops when
//! the last of them goes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::DownloadError;
use super::progress::Progress;
use super::transfer;
use super::wanted::{DownloadSettings, Parts, Wanted};
use crate::library::library::Library;
use crate::model::id::{FileId, PeerId};
use crate::news::News;
use crate::rate::RateLimit;
use crate::transport::dialer::Dialer;

/// What became of a transfer.
#[derive(Default)]
struct Outcome {
    result: OnceLock<Result<(), Arc<DownloadError>>>,
    known: News,
}

impl Outcome {
    fn is_known(&self) -> bool {
        self.result.get().is_some()
    }

    fn tell(&self, result: Result<(), Arc<DownloadError>>) {
        // The first is what counts.
        let _ = self.result.set(result);
        self.known.tell();
    }
}

/// Tells those who wait that a transfer ended, whatever it ends with.
struct TellOnDrop(Arc<Outcome>);

impl Drop for TellOnDrop {
    fn drop(&mut self) {
        self.0.tell(Err(Arc::new(DownloadError::Cancelled)));
    }
}

struct Running {
    progress: watch::Receiver<Progress>,
    outcome: Arc<Outcome>,
    /// Cancels the transfer when the last who waits for it goes.
    _stop: DropGuard,
}

/// Downloads files into the library.
pub struct Downloader {
    pub(super) parts: Arc<Parts>,
    running: Mutex<HashMap<FileId, Weak<Running>>>,
    tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl std::fmt::Debug for Downloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Downloader").field("running", &self.running.lock().len()).finish_non_exhaustive()
    }
}

/// One who waits for a download. When all who wait for it are dropped, the download stops and keeps what it has.
pub struct Download {
    running: Arc<Running>,
}

impl Download {
    /// How far it is; changes as it goes.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.running.progress.clone()
    }

    /// Waits until the file is complete in the library or at its destination.
    pub async fn wait(&self) -> Result<(), Arc<DownloadError>> {
        let outcome = &self.running.outcome;
        outcome.known.until(|| outcome.is_known()).await;
        outcome.result.get().cloned().unwrap_or_else(|| Err(Arc::new(DownloadError::Cancelled)))
    }
}

impl Downloader {
    /// A downloader into this library. `me` is left out where the trackers name providers.
    pub fn new(
        library: Arc<Library>,
        dialer: Arc<Dialer>,
        limit: Arc<RateLimit>,
        me: Option<PeerId>,
        settings: DownloadSettings,
    ) -> Self {
        // A piece of the largest size always fits.
        let units = (settings.budget / 1024).max(crate::model::layout::MAX_PIECE_SIZE as usize / 1024);
        let budget = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self {
            parts: Arc::new(Parts { library, dialer, settings, limit, budget, me, held: Mutex::default() }),
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// The library that it downloads into.
    pub fn library(&self) -> &Arc<Library> {
        &self.parts.library
    }

    /// Starts the download, or joins the one of the same file that is under way; the destination is then that of
    /// the first.
    pub fn get(&self, wanted: Wanted) -> Download {
        let mut running = self.running.lock();
        running.retain(|_, transfer| transfer.strong_count() > 0);
        let entry = running.entry(wanted.id);
        if let Entry::Occupied(entry) = &entry
            && let Some(transfer) = entry.get().upgrade()
            && !transfer.outcome.is_known()
        {
            return Download { running: transfer };
        }
        let cancel = self.shutdown.child_token();
        let (progress, progress_seen) = watch::channel(Progress::default());
        let outcome = Arc::new(Outcome::default());
        let transfer = Arc::new(Running {
            progress: progress_seen,
            outcome: Arc::clone(&outcome),
            _stop: cancel.clone().drop_guard(),
        });
        entry.insert_entry(Arc::downgrade(&transfer));
        let parts = Arc::clone(&self.parts);
        let ending = TellOnDrop(outcome);
        self.tasks.spawn(async move {
            let result = transfer::run(&parts, &wanted, &progress, &cancel).await;
            ending.0.tell(result.map(|_| ()).map_err(Arc::new));
        });
        Download { running: transfer }
    }

    /// Whether the file is being downloaded.
    pub fn is_running(&self, id: &FileId) -> bool {
        let running = self.running.lock();
        running.get(id).and_then(Weak::upgrade).is_some_and(|transfer| !transfer.outcome.is_known())
    }

    /// Stops all downloads; returns when what they have is kept.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
