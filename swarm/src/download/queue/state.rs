//! The state of the download queue.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::entries::Entries;
use crate::change::ChangeNotifier;
use crate::download::downloader::Downloader;
use crate::download::provider::ProviderSource;
use crate::download::request::Progress;
use enjambre_core::FileId;
use enjambre_core::runtime::backoff::Backoff;

/// The download queue, which clones share. Has to be used within a tokio runtime.
#[derive(Clone)]
pub struct DownloadQueue(pub(super) Arc<Inner>);

impl fmt::Debug for DownloadQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownloadQueue").finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) downloader: Arc<Downloader>,
    pub(super) providers: Arc<dyn ProviderSource>,
    pub(super) state: Mutex<State>,
    /// Held while a change is stored.
    pub(super) writes: tokio::sync::Mutex<()>,
    pub(super) changes: Arc<ChangeNotifier>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

#[derive(Default)]
pub(super) struct State {
    /// As stored.
    pub(super) entries: Entries,
    pub(super) runs: HashMap<FileId, Run>,
    /// Entries whose records are unknown after a failed commit. The next change writes them again.
    pub(super) uncertain: BTreeSet<FileId>,
    pub(super) is_started: bool,
}

/// The attempts to download an entry since it was queued.
pub(super) struct Run {
    pub(super) phase: RunPhase,
    /// The start of the last attempt.
    pub(super) started: Instant,
    pub(super) progress: watch::Receiver<Progress>,
    /// The last temporary failure.
    pub(super) error: Option<String>,
    pub(super) backoff: Backoff,
    /// Stops the task of the current attempt.
    pub(super) stop: CancellationToken,
    /// Ends the delay before the next attempt.
    pub(super) retry: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunPhase {
    /// Waits for its turn.
    Ready,
    Active,
    /// Waits for the next attempt.
    Delayed,
}

impl Run {
    pub(super) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }
}
