//! The download queue of a node: downloads that it continues by itself, also after a restart.
//!
//! The entries are records in the index of the library, and every change is durable before it is acknowledged. A few of
//! them are downloaded at a time, in their order; the others wait. A download without providers gives its turn to the next
//! one and is retried with a growing delay. Downloads of commands and of HTTP clients are listed too.
//!
//! ```text
//! queued -> active -> complete, failed       queued, active <-> paused
//!    ^        |
//!    '- wait -'  after a temporary failure
//! ```

mod entries;
mod error;
mod run;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::entries::Entries;
pub use self::entries::MAX_FINISHED;
pub use self::error::{MAX_PENDING, QueueError, Result};
pub use self::run::MAX_ACTIVE;
pub use self::state::DownloadQueue;
use self::state::{Inner, Run, State};
pub use self::status::{DownloadStatus, QueueSubscription, Stage};
use super::downloader::Downloader;
use super::provider::ProviderSource;
use super::view::Details;
use crate::library::entry::{Entry, Origin};
use crate::library::library::Library;
use crate::library::{DOWNLOADS, DownloadRecord, DownloadState, download_key, read_download};
use enjambre_core::runtime;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{Batch, Durability, FileId, FileKind, KeyRange, Name, StorageError, StorageExt};

/// How long a cancelled download may take to stop before its incomplete file is kept.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const PAGE: usize = 1000;

/// A file or directory to download into the library, by the claims of its publisher.
#[derive(Debug, Clone)]
pub struct NewDownload {
    /// The id.
    pub id: FileId,
    /// The name in the library.
    pub name: Name,
    /// The kind.
    pub kind: FileKind,
    /// The size in bytes.
    pub size: u64,
}

impl DownloadQueue {
    /// Loads the queue from the index of the library. Nothing is downloaded before [`Self::start`].
    pub async fn open(
        downloader: Arc<Downloader>,
        providers: Arc<dyn ProviderSource>,
    ) -> Result<Self, StorageError> {
        let mut loaded = Vec::new();
        let mut records = downloader.library().index().entries(DOWNLOADS, KeyRange::all(), PAGE);
        while let Some((key, value)) = records.next().await? {
            loaded.push(read_download(&key, &value)?);
        }
        let state = State { entries: Entries::new(loaded), ..State::default() };
        Ok(Self(Arc::new(Inner {
            changes: Arc::clone(downloader.changes()),
            downloader,
            providers,
            state: Mutex::new(state),
            writes: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// Starts to download the entries.
    pub fn start(&self) {
        self.0.state.lock().is_started = true;
        self.0.schedule();
    }

    /// Stops the downloads. The next run of the node continues them.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Returns the entry with this name, id or prefix of an id with at least 8 digits.
    ///
    /// # Errors
    /// [`QueueError::Command`] if only a command or an HTTP client downloads such a file.
    pub fn find(&self, query: &str) -> Result<FileId> {
        let found = self.0.state.lock().entries.find(query);
        let is_asked = |status: &DownloadStatus| {
            let is_named = status.name.as_ref().is_some_and(|name| name.as_str() == query);
            status.is_command && (is_named || status.id.to_string() == query)
        };
        found.map_err(|error| match self.list().into_iter().find(is_asked) {
            Some(command) => QueueError::Command(command.id),
            None => error,
        })
    }

    /// Adds a download behind the others, or returns `false` if the queue contains it. A failed download is added again, and
    /// so is a complete one whose file is no longer in the library.
    pub async fn add(&self, NewDownload { id, name, kind, size }: NewDownload) -> Result<bool> {
        let (is_stored, added_ms) = (self.0.is_stored(&id).await, SystemClock.now());
        let add = move |entries: &mut Entries| {
            let is_known = entries.get(&id).is_some_and(|known| match known.state {
                DownloadState::Queued | DownloadState::Paused => true,
                DownloadState::Complete => is_stored,
                DownloadState::Failed(_) => false,
            });
            if is_known {
                return Ok(false);
            }
            let state = DownloadState::Queued;
            entries.add(id, DownloadRecord { order: 0, name, kind, size, done: 0, added_ms, state })?;
            Ok(true)
        };
        self.0.change(add).await
    }

    /// Pauses a download. Its verified pieces are kept.
    pub async fn pause(&self, id: FileId) -> Result<()> {
        let progress = self.0.state.lock().runs.get(&id).map(Run::progress);
        let pause = move |entries: &mut Entries| {
            if let Some(progress) = progress.filter(|progress| progress.total > 0) {
                entries.set_progress(&id, progress.done, progress.total);
            }
            entries.set_state(&id, DownloadState::Paused)
        };
        self.0.change(pause).await
    }

    /// Resumes a paused download, or tries a failed one again.
    pub async fn resume(&self, id: FileId) -> Result<()> {
        self.0.change(move |entries| entries.set_state(&id, DownloadState::Queued)).await?;
        self.0.retry_now(&id);
        Ok(())
    }

    /// Moves a download to a position among those that are not finished. Running downloads are not interrupted.
    pub async fn move_to(&self, id: FileId, position: usize) -> Result<()> {
        self.0.change(move |entries| entries.move_to(&id, position)).await
    }

    /// Removes an entry. If it is not finished, its incomplete file is removed from the library too, unless `keep` is set or
    /// a command downloads the same file.
    pub async fn cancel(&self, id: FileId, keep: bool) -> Result<()> {
        if !keep {
            // Paused, so that it is not started again while its file is removed.
            match self.pause(id).await {
                Ok(()) => self.0.remove_incomplete(&id).await?,
                Err(QueueError::Finished(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let remove = move |entries: &mut Entries| {
            entries.get(&id).ok_or_else(|| QueueError::NotFound(id.to_string()))?;
            entries.remove(&id);
            Ok(())
        };
        self.0.change(remove).await
    }

    /// Describes the sources and the pieces of a download.
    pub async fn details(&self, id: &FileId) -> Details {
        self.0.downloader.details(id).await
    }
}

impl Inner {
    fn library(&self) -> &Arc<Library> {
        self.downloader.library()
    }

    /// Changes the entries. Durable on return.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        edit: impl FnOnce(&mut Entries) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(self);
        // In a task, so that a caller that goes away does not interrupt it between the commit and the change in memory.
        let work = async move { inner.store(edit).await };
        runtime::spawn_in(&self.tasks, work).await.unwrap_or(Err(QueueError::Closed))
    }

    async fn store<T>(self: &Arc<Self>, edit: impl FnOnce(&mut Entries) -> Result<T>) -> Result<T> {
        let _turn = self.writes.lock().await;
        let (before, mut changed) = {
            let state = self.state.lock();
            (state.entries.clone(), state.uncertain.clone())
        };
        let mut entries = before.clone();
        let result = edit(&mut entries)?;
        changed.extend(entries.changes_since(&before));
        if !changed.is_empty() {
            let mut batch = Batch::new();
            for id in &changed {
                match entries.get(id) {
                    Some(record) => batch.put(DOWNLOADS, download_key(id), record.encode()),
                    None => batch.delete(DOWNLOADS, download_key(id)),
                };
            }
            let stored = self.library().index().commit(batch, Durability::Durable).await;
            let mut state = self.state.lock();
            if let Err(error) = stored {
                state.uncertain = changed;
                return Err(error.into());
            }
            state.entries = entries;
            state.uncertain.clear();
            drop(state);
            self.changes.notify();
        }
        self.schedule();
        Ok(result)
    }

    /// Whether the library has all content of a file, or of a directory and its members.
    async fn is_stored(&self, id: &FileId) -> bool {
        let library = self.library();
        let is_complete = |id| library.entry(id).is_some_and(|entry| entry.is_complete());
        match library.entry(id) {
            Some(entry) if entry.kind == FileKind::Collection && entry.is_complete() => {
                let Ok(list) = library.collection(id).await else { return false };
                list.members().iter().all(|member| is_complete(&member.id))
            }
            entry => entry.is_some_and(|entry| entry.is_complete()),
        }
    }

    /// Removes an incomplete file, or the incomplete directory with its members, from the library.
    async fn remove_incomplete(&self, id: &FileId) -> Result<()> {
        if timeout(STOP_TIMEOUT, self.downloader.ended(id)).await.is_err() {
            // A command downloads the same file.
            return Ok(());
        }
        let library = self.library();
        let downloaded = |entry: &Entry| entry.origin == Origin::Downloaded && entry.withdrawn.is_none();
        if library.entry(id).is_some_and(|entry| downloaded(&entry)) && !self.is_stored(id).await {
            library.remove(id).await?;
        }
        Ok(())
    }
}
