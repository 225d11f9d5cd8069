//! Checkpoints: sync the content first, then record the synced pieces in the index.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::content::ContentStore;
use super::content_files::{self, ToSync};
use super::error::{LibraryError, Result};
use super::inner::LibraryInner;
use super::task::{blocking, in_task};
use super::unsynced::{CheckpointPlan, SmallFilesPlan, Unsynced};
use enjambre_core::{Batch, Durability, FileId};

/// The number of unsynced files that starts a checkpoint. Each of them is open.
const SOFT_DIRTY_FILES: usize = 128;
/// The number of unsynced files at which writers wait for the checkpoint.
const HARD_DIRTY_FILES: usize = 384;
/// The number of unsynced small files that starts a checkpoint.
pub(super) const SOFT_SMALL_FILES: usize = 8 * 1024;
/// The number of unsynced small files at which writers wait for the checkpoint.
const HARD_SMALL_FILES: usize = 32 * 1024;
/// The number of unsynced bytes that starts a checkpoint.
pub(super) const SOFT_BYTES: u64 = 32 << 20;
/// The number of unsynced bytes at which writers wait for the checkpoint.
const HARD_BYTES: u64 = 256 << 20;
/// The longest time between a write and its sync while little is written.
const FLUSH_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between attempts while checkpoints fail.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(10);

impl LibraryInner {
    /// Registers a file with unsynced changes, of which `written` bytes are new.
    pub(super) fn mark_dirty(&self, file: Arc<dyn Unsynced>, written: u64) {
        let files = {
            let mut dirty = self.dirty.lock();
            dirty.entry(file.id()).or_insert(file);
            dirty.len()
        };
        let unsynced = self.unsynced_bytes.fetch_add(written, Ordering::AcqRel) + written;
        self.flush_soon.notify_one();
        if unsynced >= SOFT_BYTES || files >= SOFT_DIRTY_FILES {
            self.flush_now.notify_one();
        }
    }

    fn is_behind(&self) -> bool {
        let (small_bytes, too_many) = {
            let state = self.state.lock();
            (state.unsynced_small.bytes, state.unsynced_small.len() >= HARD_SMALL_FILES)
        };
        too_many
            || self.unsynced_bytes.load(Ordering::Acquire) + small_bytes >= HARD_BYTES
            || self.dirty.lock().len() >= HARD_DIRTY_FILES
    }

    /// Delays a writer until the unsynced data is below the limits.
    pub(super) async fn keep_up(self: &Arc<Self>) -> Result<()> {
        // The checkpoint that holds the lock may be enough.
        if self.is_behind() { self.checkpoint_if(None, Self::is_behind).await } else { Ok(()) }
    }

    /// Makes the writes so far durable, of one file or of all files.
    pub(super) async fn checkpoint(self: &Arc<Self>, only: Option<FileId>) -> Result<()> {
        self.check_open()?;
        self.checkpoint_if(only, |_| true).await
    }

    async fn checkpoint_if(
        self: &Arc<Self>,
        only: Option<FileId>,
        is_needed: fn(&Self) -> bool,
    ) -> Result<()> {
        let inner = Arc::clone(self);
        let work = async move {
            let _running = inner.checkpoint.lock().await;
            if is_needed(&inner) { inner.checkpoint_locked(only).await } else { Ok(()) }
        };
        in_task(work).await
    }

    async fn checkpoint_locked(&self, only: Option<FileId>) -> Result<()> {
        let files: Vec<Arc<dyn Unsynced>> = {
            let dirty = self.dirty.lock();
            let chosen = dirty.values().filter(|file| only.is_none_or(|only| only == file.id()));
            chosen.cloned().collect()
        };
        let small = only.map_or_else(|| self.plan_small_files(), |_| SmallFilesPlan::default());
        if files.is_empty() && small.files.is_empty() {
            // Changes of names, for example, have no unsynced file.
            return if only.is_none() { Ok(self.index.sync().await?) } else { Ok(()) };
        }
        let mut plans: Vec<CheckpointPlan> = files.iter().map(|file| file.plan_checkpoint()).collect();

        // First the content.
        if let ContentStore::Database(content) = &self.content
            && (small.in_database || plans.iter().any(|plan| plan.in_database))
        {
            content.sync().await?;
        }
        let to_sync: Vec<ToSync> = plans.iter_mut().filter_map(|plan| plan.to_sync.take()).collect();
        if !to_sync.is_empty() {
            blocking(move || content_files::sync(&to_sync)).await?;
        }
        self.sync_small_files(&small).await?;

        // Then the records of the synced pieces.
        let _guards = self
            .lock_all(files.iter().map(|file| file.id()).chain(small.files.iter().map(|(id, _)| *id)))
            .await;
        let mut batch = Batch::new();
        for (file, plan) in files.iter().zip(&plans) {
            file.put_checkpoint(plan, &mut batch);
        }
        self.put_small_files(&small, &mut batch);
        // Any part of the batch contains synced pieces only, so the batch need not be atomic.
        let result = match batch.is_empty() {
            true => self.index.sync().await.map_err(LibraryError::from),
            false => self.commit_in_parts(batch, Durability::Durable).await,
        };
        self.end_small_files(&small, result.is_ok());
        if only.is_none() && result.is_ok() {
            self.inherited_unsynced.store(false, Ordering::Relaxed);
        }
        for (file, plan) in files.iter().zip(&plans) {
            let (bytes, clean) = file.end_checkpoint(plan, result.is_ok());
            self.unsynced_bytes.fetch_sub(bytes, Ordering::AcqRel);
            if clean {
                let mut dirty = self.dirty.lock();
                // A concurrent write inserts the file before this lock, or after the removal.
                if file.is_clean() {
                    dirty.remove(&file.id());
                }
            }
        }
        result
    }

    /// Runs checkpoints soon after the first write, or at once when much is unsynced, until the library is
    /// closed.
    pub(super) async fn run_checkpoints(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let due = async {
                self.flush_soon.notified().await;
                let _ = tokio::time::timeout(FLUSH_PAUSE, self.flush_now.notified()).await;
            };
            if self.stop.run_until_cancelled(due).await.is_none() {
                return;
            }
            let Err(error) = self.checkpoint(None).await else {
                if failures > 0 {
                    tracing::info!(failures, "library checkpoint succeeded again");
                }
                failures = 0;
                continue;
            };
            if matches!(error, LibraryError::Closed) && self.stop.is_cancelled() {
                return;
            }
            if failures == 0 {
                tracing::warn!(%error, "library checkpoint failed; retrying");
            } else {
                tracing::debug!(%error, failures, "library checkpoint failed; retrying");
            }
            failures += 1;
            let pause = tokio::time::sleep((FLUSH_PAUSE * failures).min(MAX_RETRY_PAUSE));
            if self.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
            self.flush_soon.notify_one();
        }
    }
}
