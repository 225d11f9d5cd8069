//! The parts that the library and its open files share: the stores, the index in memory and its locks.
//!
//! Every change to the records of a file holds the lock of its id ([`LibraryInner::lock`]) from reading the
//! state to the end of the commit, so the records in the index follow the state in memory. The other locks
//! are short and are never held across an `await`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, broadcast};
use tokio_util::sync::CancellationToken;

use super::content::ContentStore;
use super::entry::{LibraryEvent, WithdrawReason};
use super::error::{LibraryError, Result};
use super::linked::LinkedFile;
use super::open_cache::OpenFileCache;
use super::state::LibraryState;
use super::unsynced::Unsynced;
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::{Batch, Durability, FileId, Storage, Write};

const LOCKS: usize = 64;
/// The number of bytes of unused piece buffers that are kept.
const POOLED_BUFFERS: usize = 4 << 20;
/// The largest number of writes in one commit.
pub(super) const BATCH_WRITES: usize = 4096;
/// The number of events that a slow subscriber may be behind.
const EVENT_BUFFER: usize = 4096;

#[derive(Debug)]
pub(crate) struct LibraryInner {
    pub(super) index: Arc<dyn Storage>,
    pub(super) content: ContentStore,
    pub(super) state: Mutex<LibraryState>,
    pub(super) events: broadcast::Sender<LibraryEvent>,
    pub(crate) stop: CancellationToken,
    /// Files with unsynced changes.
    pub(super) dirty: Mutex<BTreeMap<FileId, Arc<dyn Unsynced>>>,
    /// Buffers for pieces that are read.
    pub(super) buffers: BufferPool,
    /// Files that other peers read recently.
    pub(super) cache: OpenFileCache,
    pub(super) unsynced_bytes: AtomicU64,
    /// Whether data that an earlier process left unsynced is still unsynced.
    pub(super) inherited_unsynced: AtomicBool,
    /// Starts a checkpoint after a pause.
    pub(super) flush_soon: Notify,
    /// Starts a checkpoint without a pause.
    pub(super) flush_now: Notify,
    /// Wakes the search for withdrawn files.
    pub(super) link_withdrawn: Notify,
    /// Wakes the task that hashes suspects.
    pub(super) suspect_added: Notify,
    /// Held by the running checkpoint.
    pub(super) checkpoint: AsyncMutex<()>,
    locks: Vec<Arc<AsyncMutex<()>>>,
}

impl LibraryInner {
    pub(super) fn new(index: Arc<dyn Storage>, content: ContentStore, state: LibraryState) -> Self {
        Self {
            index,
            content,
            state: Mutex::new(state),
            events: broadcast::Sender::new(EVENT_BUFFER),
            stop: CancellationToken::new(),
            dirty: Mutex::default(),
            buffers: BufferPool::new(POOLED_BUFFERS),
            cache: OpenFileCache::default(),
            unsynced_bytes: AtomicU64::new(0),
            inherited_unsynced: AtomicBool::new(false),
            flush_soon: Notify::new(),
            flush_now: Notify::new(),
            link_withdrawn: Notify::new(),
            suspect_added: Notify::new(),
            checkpoint: AsyncMutex::new(()),
            locks: (0..LOCKS).map(|_| Arc::default()).collect(),
        }
    }

    /// Sends an event to the subscribers, if there are any.
    pub(super) fn notify(&self, event: LibraryEvent) {
        let _ = self.events.send(event);
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.stop.is_cancelled() { Err(LibraryError::Closed) } else { Ok(()) }
    }

    /// Records that every piece of a linked file was hashed or written in the version with its fingerprint.
    pub(super) fn set_verified(&self, id: &FileId, linked: &LinkedFile) {
        if let Some(slot) = self.state.lock().slots.get_mut(id)
            && slot.record.withdrawn.is_none()
            && slot.record.place.links_to(&linked.path, &linked.fingerprint)
        {
            slot.verified = true;
        }
    }

    fn lock_of(id: &FileId) -> usize {
        usize::from(id.as_bytes()[0]) % LOCKS
    }

    /// Acquires the right to change the records of a file.
    pub(super) async fn lock(&self, id: &FileId) -> OwnedMutexGuard<()> {
        Arc::clone(&self.locks[Self::lock_of(id)]).lock_owned().await
    }

    /// Acquires the right to change the records of several files. All callers lock in the same order.
    pub(super) async fn lock_all(&self, ids: impl Iterator<Item = FileId>) -> Vec<OwnedMutexGuard<()>> {
        let wanted: BTreeSet<usize> = ids.map(|id| Self::lock_of(&id)).collect();
        let mut guards = Vec::with_capacity(wanted.len());
        for at in wanted {
            guards.push(Arc::clone(&self.locks[at]).lock_owned().await);
        }
        guards
    }

    /// Stores the record of a file. The caller holds the lock of the id.
    pub(super) async fn store_record(&self, id: &FileId, durability: Durability) -> Result<()> {
        let mut batch = Batch::new();
        self.state.lock().put_record(&mut batch, id);
        if !batch.is_empty() {
            self.index.commit(batch, durability).await?;
            self.state.lock().set_stored(id);
        }
        Ok(())
    }

    /// Marks a linked file as withdrawn, so that it is not offered until its content is back. The caller holds
    /// the lock of the id and has retired the open file.
    pub(super) async fn withdraw(&self, id: &FileId, reason: WithdrawReason) -> Result<()> {
        {
            let mut state = self.state.lock();
            let Some(slot) = state.slots.get_mut(id).filter(|slot| slot.record.withdrawn.is_none()) else {
                return Ok(());
            };
            slot.record.withdrawn = Some(reason);
            slot.verified = false;
            slot.stored = false;
            let path = slot.record.place.path();
            let path = path.as_deref().map(|path| tracing::field::display(path.display()));
            tracing::warn!(%id, path, %reason, "linked file withdrawn");
            state.unsynced_small.remove(id);
        }
        self.link_withdrawn.notify_one();
        self.notify(LibraryEvent::Withdrawn(*id));
        self.store_record(id, Durability::Buffered).await
    }

    /// Whether [`Self::commit_in_parts`] splits the batch, so that only some of it may be applied after an
    /// error.
    pub(super) fn is_in_parts(&self, batch: &Batch) -> bool {
        let size: usize = batch.writes.iter().map(Write::size).sum();
        batch.writes.len() > BATCH_WRITES || size > self.index.limits().max_batch
    }

    /// Commits writes that need not be atomic in as few batches as possible, the last one with `durability`.
    pub(super) async fn commit_in_parts(&self, batch: Batch, durability: Durability) -> Result<()> {
        let limit = self.index.limits().max_batch;
        let (mut part, mut size) = (Batch::new(), 0);
        for write in batch.writes {
            let added = write.size();
            if size + added > limit || part.writes.len() == BATCH_WRITES {
                self.index.commit(std::mem::take(&mut part), Durability::Buffered).await?;
                size = 0;
            }
            size += added;
            part.writes.push(write);
        }
        if !part.is_empty() {
            self.index.commit(part, durability).await?;
        }
        Ok(())
    }
}
