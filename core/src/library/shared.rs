//! What the library and its open files share: the index in memory, its locks, and the checkpoint.
//!
//! Every change of a file's records holds the lock that its id falls on ([`Shared::lock`]) from reading the state to
//! the end of the commit, so the records in the index follow those in memory. The other locks are short and
//! never held across an `await`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, broadcast};
use tokio_util::sync::CancellationToken;

use super::content::{ContentStore, DatabaseContent};
use super::content_files::{self, ToSync};
use super::entry::{Entry, LibraryEvent, Location, Origin};
use super::error::LibraryError;
use super::file::LibraryFile;
use super::layout::{self, Place, Record};
use super::links::Links;
use super::recent::RecentFiles;
use super::settings::LibrarySettings;
use super::small::fresh::{Fresh, FreshPlan};
use crate::buffers::BufferPool;
use crate::machine::{HashMap, HashSet};
use crate::model::id::FileId;
use crate::model::layout::PieceLayout;
use crate::model::name::Name;
use crate::model::record::Offer;
use crate::storage::Storage;
use crate::storage::value::{Batch, Durability, Key, Space, Write};

const LOCKS: usize = 64;
/// How many files may wait for a sync until one begins, and until writers wait for it: each is an open file.
const SOFT_DIRTY_FILES: usize = 128;
const HARD_DIRTY_FILES: usize = 384;
/// How many bytes of buffers for pieces wait to be used again.
const KEPT_BUFFERS: usize = 4 << 20;
/// How many writes go into one commit.
const BATCH_WRITES: usize = 4096;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) index: Arc<dyn Storage>,
    pub(super) content: ContentStore,
    pub(super) settings: LibrarySettings,
    pub(super) state: Mutex<State>,
    pub(super) events: broadcast::Sender<LibraryEvent>,
    pub(crate) stop: CancellationToken,
    /// Files with something that the index or the disk does not have yet.
    pub(super) dirty: Mutex<BTreeMap<FileId, Arc<LibraryFile>>>,
    /// Pieces are read into these.
    pub(super) buffers: BufferPool,
    /// Files that other peers fetch.
    pub(super) recent: RecentFiles,
    pub(super) unsynced: AtomicU64,
    /// Whether what an earlier process left unsynced still is.
    pub(super) owes_sync: AtomicBool,
    pub(super) flush_some_time: Notify,
    pub(super) flush_now: Notify,
    checkpoint: AsyncMutex<()>,
    locks: Vec<Arc<AsyncMutex<()>>>,
}

/// The index in memory.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) slots: BTreeMap<FileId, Slot>,
    pub(super) names: BTreeMap<Name, BTreeSet<(u64, FileId)>>,
    /// Member and collection.
    pub(super) members: BTreeSet<(FileId, FileId)>,
    pub(super) tombs: HashMap<FileId, Tomb>,
    pub(super) acks: HashSet<([u8; 16], FileId, Name)>,
    pub(super) last_number: u64,
    /// Files whose content is being copied in and that have no record yet, and by how many at the same time.
    pub(super) importing: HashMap<FileId, usize>,
    /// Small files that were added and are not known to be synced.
    pub(super) fresh: Fresh,
    /// Linked files by the hashes of their paths, as far as paths and hashes differ.
    pub(super) links: Links,
}

/// What remains to be removed of a file.
#[derive(Debug, Clone)]
pub(super) struct Tomb {
    pub(super) record: Record,
    /// Where the index may still have the file instead of the tombstone: what else is to be deleted there.
    pub(super) doubtful: Option<Vec<(Space, Key)>>,
}

/// A file in memory.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) record: Record,
    /// Whether the index has the record as it is here.
    pub(super) stored: bool,
    pub(super) have: u32,
    /// Every piece of the user's file was hashed or written by this process since it has looked as the record says.
    pub(super) proven: bool,
    pub(super) file: Weak<LibraryFile>,
}

impl Slot {
    pub(super) fn new(record: Record, stored: bool, have: u32) -> Self {
        Self { record, stored, have, proven: false, file: Weak::new() }
    }

    /// What others are told of the file, if it has a name and something of it is here.
    pub(super) fn offer(&self, id: FileId) -> Option<Offer> {
        let record = &self.record;
        let here = record.complete || self.have > 0;
        let offered = here && !record.withdrawn && !record.names.is_empty();
        let pieces = record.layout().map_or(0, |layout| layout.count());
        offered.then_some(Offer { id, size: record.size, complete: self.have == pieces })
    }

    pub(super) fn entry(&self, id: FileId) -> Entry {
        let record = &self.record;
        let pieces = PieceLayout::new(record.size).map_or(0, |layout| layout.count());
        Entry {
            id,
            name: record.names.last().map(|name| name.name.clone()),
            names: record.names.iter().map(|name| name.name.clone()).collect(),
            kind: record.kind,
            size: record.size,
            pieces,
            have: if record.withdrawn { 0 } else { self.have },
            origin: if record.published { Origin::Published } else { Origin::Downloaded },
            location: location(&record.place),
            added_ms: record.added_ms,
            withdrawn: record.withdrawn,
        }
    }
}

pub(super) fn location(place: &Place) -> Location {
    match place {
        Place::Database => Location::Database,
        Place::Files => Location::Files,
        Place::Linked { .. } => Location::Linked { path: place.path().unwrap_or_default() },
    }
}

impl State {
    /// Puts a file in, or takes the place of its record; its names are found from then on.
    pub(super) fn insert(&mut self, id: FileId, slot: Slot) {
        self.fresh.remove(&id);
        self.link(&id, &slot.record);
        self.forget_names(&id);
        for name in &slot.record.names {
            self.names.entry(name.name.clone()).or_default().insert((name.number, id));
            self.last_number = self.last_number.max(name.number);
        }
        self.slots.insert(id, slot);
    }

    /// Keeps the sweep away from the content of a file that has no record yet, until [`Self::end_import`].
    pub(super) fn begin_import(&mut self, id: FileId) {
        *self.importing.entry(id).or_default() += 1;
    }

    pub(super) fn end_import(&mut self, id: &FileId) {
        if let Some(count) = self.importing.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.importing.remove(id);
            }
        }
    }

    pub(super) fn remove(&mut self, id: &FileId) -> Option<Slot> {
        self.fresh.remove(id);
        self.unlink(id);
        self.forget_names(id);
        self.slots.remove(id)
    }

    fn forget_names(&mut self, id: &FileId) {
        let Some(slot) = self.slots.get(id) else { return };
        for name in &slot.record.names {
            if let Some(holders) = self.names.get_mut(&name.name) {
                holders.remove(&(name.number, *id));
                if holders.is_empty() {
                    self.names.remove(&name.name);
                }
            }
        }
    }

    /// The collections that the file is a member of.
    pub(super) fn collections_of(&self, member: &FileId) -> impl Iterator<Item = FileId> {
        let member = *member;
        let (first, last) = (FileId::from_bytes([0; 32]), FileId::from_bytes([0xff; 32]));
        self.members.range((member, first)..=(member, last)).map(|(_, collection)| *collection)
    }

    /// Whether nothing speaks for keeping the file: it has no name and belongs to no collection.
    pub(super) fn is_garbage(&self, id: &FileId) -> bool {
        self.slots.get(id).is_some_and(|slot| slot.record.names.is_empty())
            && self.collections_of(id).next().is_none()
    }

    /// The writes that make the index know the file's record, if it does not yet.
    pub(super) fn put_record(&self, batch: &mut Batch, id: &FileId) {
        let Some(slot) = self.slots.get(id).filter(|slot| !slot.stored) else { return };
        batch.put(layout::FILES, layout::id_key(id), slot.record.encode());
        for collection in self.collections_of(id) {
            batch.put(layout::MEMBERS, layout::member_key(id, &collection), vec![1]);
        }
    }
}

impl Shared {
    pub(super) fn new(
        index: Arc<dyn Storage>,
        content: ContentStore,
        settings: LibrarySettings,
        state: State,
    ) -> Self {
        Self {
            index,
            content,
            settings,
            state: Mutex::new(state),
            events: broadcast::Sender::new(4096),
            stop: CancellationToken::new(),
            dirty: Mutex::default(),
            buffers: BufferPool::new(KEPT_BUFFERS),
            recent: RecentFiles::default(),
            unsynced: AtomicU64::new(0),
            owes_sync: AtomicBool::new(false),
            flush_some_time: Notify::new(),
            flush_now: Notify::new(),
            checkpoint: AsyncMutex::new(()),
            locks: (0..LOCKS).map(|_| Arc::default()).collect(),
        }
    }

    pub(super) fn tell(&self, event: LibraryEvent) {
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    pub(super) fn check_open(&self) -> Result<(), LibraryError> {
        if self.stop.is_cancelled() { Err(LibraryError::Closed) } else { Ok(()) }
    }

    /// The file, where somebody has it open.
    pub(super) fn already_open(&self, id: &FileId) -> Option<Arc<LibraryFile>> {
        let state = self.state.lock();
        state.slots.get(id).filter(|slot| !slot.record.withdrawn).and_then(|slot| slot.file.upgrade())
    }

    /// Every piece of the file was hashed or written since it has looked as its record says.
    pub(super) fn prove(&self, file: &LibraryFile) {
        if let Some(slot) = self.state.lock().slots.get_mut(&file.id())
            && std::ptr::eq(slot.file.as_ptr(), file)
        {
            slot.proven = true;
        }
    }

    /// Keeps the file open for a while.
    pub(super) fn hold_open(&self, file: &Arc<LibraryFile>) {
        self.recent.touch(file);
        // Whoever removes the file or closes the library does that first, and then lets go of what is held.
        if file.is_removed() || self.stop.is_cancelled() {
            self.recent.forget(&file.id());
        }
    }

    fn lock_of(id: &FileId) -> usize {
        usize::from(id.as_bytes()[0]) % LOCKS
    }

    /// The right to change the records of a file.
    pub(super) async fn lock(&self, id: &FileId) -> OwnedMutexGuard<()> {
        Arc::clone(&self.locks[Self::lock_of(id)]).lock_owned().await
    }

    /// The right to change the records of several files. Taken in one order by everybody.
    pub(super) async fn lock_all(&self, ids: impl Iterator<Item = FileId>) -> Vec<OwnedMutexGuard<()>> {
        let wanted: BTreeSet<usize> = ids.map(|id| Self::lock_of(&id)).collect();
        let mut guards = Vec::with_capacity(wanted.len());
        for at in wanted {
            guards.push(Arc::clone(&self.locks[at]).lock_owned().await);
        }
        guards
    }

    /// Stores the record as it is in memory. The caller holds the lock of the id.
    pub(super) async fn store_record(&self, id: &FileId, durability: Durability) -> Result<(), LibraryError> {
        let mut batch = Batch::new();
        self.state.lock().put_record(&mut batch, id);
        if !batch.is_empty() {
            self.index.commit(batch, durability).await?;
            if let Some(slot) = self.state.lock().slots.get_mut(id) {
                slot.stored = true;
            }
        }
        Ok(())
    }

    /// Whether a batch is committed in several parts, of which some may be applied when one fails.
    pub(super) fn is_in_parts(&self, batch: &Batch) -> bool {
        let size: usize = batch.writes.iter().map(Write::size).sum();
        batch.writes.len() > BATCH_WRITES || size > self.index.limits().max_batch
    }

    /// Commits writes that need not stand or fall together, as few batches, the last with `durability`.
    pub(super) async fn commit_in_parts(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), LibraryError> {
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

    /// Notes that a file has something that is to be made durable.
    pub(super) fn mark_dirty(&self, file: &Arc<LibraryFile>, written: u64) {
        let files = {
            let mut dirty = self.dirty.lock();
            dirty.entry(file.id()).or_insert_with(|| Arc::clone(file));
            dirty.len()
        };
        let unsynced = self.unsynced.fetch_add(written, Ordering::AcqRel) + written;
        self.flush_some_time.notify_one();
        if unsynced >= self.settings.checkpoint_bytes || files >= SOFT_DIRTY_FILES {
            self.flush_now.notify_one();
        }
    }

    fn is_behind(&self) -> bool {
        let (fresh, too_many) = {
            let state = self.state.lock();
            (state.fresh.bytes(), state.fresh.are_too_many())
        };
        too_many
            || self.unsynced.load(Ordering::Acquire) + fresh >= self.settings.max_unsynced_bytes
            || self.dirty.lock().len() >= HARD_DIRTY_FILES
    }

    /// Holds a writer up while the disk is behind.
    pub(super) async fn keep_up(self: &Arc<Self>) -> Result<(), LibraryError> {
        if self.is_behind() {
            let shared = Arc::clone(self);
            let work = async move {
                let _running = shared.checkpoint.lock().await;
                // The checkpoint that was waited for may have sufficed.
                if shared.is_behind() { shared.checkpoint_locked(None).await } else { Ok(()) }
            };
            layout::finished(tokio::spawn(work)).await?;
        }
        Ok(())
    }

    /// Makes durable what one file, or every file, has written by now.
    pub(super) async fn checkpoint(self: &Arc<Self>, only: Option<FileId>) -> Result<(), LibraryError> {
        self.check_open()?;
        let shared = Arc::clone(self);
        let work = async move {
            let _running = shared.checkpoint.lock().await;
            shared.checkpoint_locked(only).await
        };
        layout::finished(tokio::spawn(work)).await
    }

    async fn checkpoint_locked(&self, only: Option<FileId>) -> Result<(), LibraryError> {
        let files: Vec<Arc<LibraryFile>> = {
            let dirty = self.dirty.lock();
            let chosen = dirty.values().filter(|file| only.is_none_or(|only| only == file.id()));
            chosen.cloned().collect()
        };
        let fresh = only.map_or_else(|| self.plan_fresh(), |_| FreshPlan::default());
        if files.is_empty() && fresh.is_empty() {
            // Names and the like may have been noted without a file that waits.
            return if only.is_none() { Ok(self.index.sync().await?) } else { Ok(()) };
        }
        let plans: Vec<_> = files.iter().map(|file| file.plan_checkpoint()).collect();

        // First the content.
        if let ContentStore::Database(content) = &self.content
            && (fresh.in_database || plans.iter().any(|plan| plan.in_database))
        {
            content.sync().await?;
        }
        let to_sync: Vec<ToSync> = files
            .iter()
            .zip(&plans)
            .filter_map(|(_, plan)| plan.to_sync.as_ref())
            .map(|one| ToSync { path: one.path.clone(), file: Arc::clone(&one.file), renamed: one.renamed })
            .collect();
        if !to_sync.is_empty() {
            layout::blocking(move || content_files::sync(&to_sync)).await?;
        }
        self.sync_fresh(&fresh).await?;

        // Then the bits that claim it.
        let _guards = self.lock_all(files.iter().map(|file| file.id()).chain(fresh.ids())).await;
        let mut batch = Batch::new();
        for (file, plan) in files.iter().zip(&plans) {
            file.put_checkpoint(plan, &mut batch);
        }
        self.put_fresh(&fresh, &mut batch);
        // A part that is applied alone claims nothing that is not synced.
        let result = match batch.is_empty() {
            true => self.index.sync().await.map_err(LibraryError::from),
            false => self.commit_in_parts(batch, Durability::Durable).await,
        };
        self.end_fresh(&fresh, result.is_ok());
        if only.is_none() && result.is_ok() {
            self.owes_sync.store(false, Ordering::Relaxed);
        }
        for (file, plan) in files.iter().zip(&plans) {
            let (bytes, clean) = file.end_checkpoint(plan, result.is_ok());
            self.unsynced.fetch_sub(bytes, Ordering::AcqRel);
            if clean {
                let mut dirty = self.dirty.lock();
                // Something may have been written since; that put it in under the same lock or comes after.
                if file.is_clean() {
                    dirty.remove(&file.id());
                }
            }
        }
        result
    }

    /// Removes a file's content. A linked file stays; of one that was being filled the part file goes. What is to be published
    /// at this moment stays too: who publishes it counts on it.
    pub(super) async fn remove_content(&self, id: &FileId, record: &Record) -> Result<(), LibraryError> {
        let id = *id;
        if record.place == self.own_place() && self.state.lock().importing.contains_key(&id) {
            return Ok(());
        }
        match (&record.place, &self.content) {
            (Place::Database, ContentStore::Database(content)) => {
                DatabaseContent(Arc::clone(content)).remove(&id, Some(record.layout()?)).await
            }
            (Place::Files, ContentStore::Files(dir)) => {
                let dir = dir.clone();
                layout::blocking(move || content_files::remove(&dir, &id)).await
            }
            (Place::Linked { state: layout::LinkState::Part { inode, executable, force }, .. }, _) => {
                let (place, inode, executable, force) = (record.place.clone(), *inode, *executable, *force);
                layout::blocking(move || {
                    let Some((root, rel)) = place.root_and_rel() else { return Ok(()) };
                    match super::output::Target::reopen(root, rel, executable, force) {
                        Ok(target) => target.remove_part(inode),
                        // The folder is gone, and the part file with it.
                        Err(_) => Ok(()),
                    }
                })
                .await
            }
            _ => Ok(()),
        }
    }
}
