//! Opening the library: its index is read, and what a crash left is mended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::content::{ContentStore, DatabaseContent};
use super::content_files;
use super::error::LibraryError;
use super::file::Store;
use super::layout::{self, ACKS, DIRTY, FILES, HAVE, MEMBERS, Place, Record, TOMBS};
use super::output::Target;
use super::shared::{Shared, Slot, State, Tomb};
use crate::model::id::FileId;
use crate::model::layout::PieceIndex;
use crate::storage::Storage;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

/// How many entries of the index are read at once.
const PAGE: usize = 1000;

/// Calls `each` with every entry of a space.
async fn for_each(
    index: &dyn Storage,
    space: Space,
    mut each: impl FnMut(&Key, &[u8]) -> Result<(), LibraryError>,
) -> Result<(), LibraryError> {
    let mut range = KeyRange::all();
    loop {
        let page = index.scan(space, range.clone(), PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        range = range.after(last);
        for (key, value) in &page {
            each(key, value)?;
        }
    }
}

/// Reads the index into memory.
pub(super) async fn load(index: &dyn Storage) -> Result<State, LibraryError> {
    let mut state = State::default();
    for_each(index, FILES, |key, value| {
        let (id, _) = layout::split_id(FILES, key)?;
        let record = Record::decode(&id, value)?;
        let have = if record.complete { record.layout()?.count() } else { 0 };
        state.insert(id, Slot::new(record, true, have));
        Ok(())
    })
    .await?;
    for_each(index, HAVE, |key, value| {
        let (id, _) = layout::split_page(HAVE, key)?;
        if let Some(slot) = state.slots.get_mut(&id).filter(|slot| !slot.record.complete) {
            slot.have += value.iter().map(|byte| byte.count_ones()).sum::<u32>();
        }
        Ok(())
    })
    .await?;
    for_each(index, MEMBERS, |key, _| {
        state.members.insert(layout::split_member(key)?);
        Ok(())
    })
    .await?;
    for_each(index, TOMBS, |key, value| {
        let (id, _) = layout::split_id(TOMBS, key)?;
        state.tombs.insert(id, Tomb { record: Record::decode(&id, value)?, doubtful: None });
        Ok(())
    })
    .await?;
    for_each(index, ACKS, |key, _| {
        state.acks.insert(layout::split_ack(key)?);
        Ok(())
    })
    .await?;
    Ok(state)
}

impl Shared {
    /// Mends what a crash left. What cannot be mended now is logged and does not keep the library closed.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<(), LibraryError> {
        self.recover_removals().await?;
        let mut dirty = BTreeSet::new();
        for_each(&*self.index, DIRTY, |key, _| {
            dirty.insert(layout::split_page(DIRTY, key)?.0);
            Ok(())
        })
        .await?;
        {
            // A power cut may have taken the bits of a file that got its name already. And of a file of the library's own
            // every piece may have been synced before it was finished.
            let state = self.state.lock();
            let open = state.slots.iter().filter(|(_, slot)| {
                let record = &slot.record;
                let full = || record.layout().is_ok_and(|layout| layout.count() == slot.have);
                !record.complete && !record.withdrawn && (record.place.path().is_some() || full())
            });
            dirty.extend(open.map(|(id, _)| *id));
        }
        for id in self.recover_small(dirty).await? {
            match self.recover_dirty(&id).await {
                Ok(()) => {}
                Err(
                    error @ (LibraryError::Storage(_) | LibraryError::Full { .. } | LibraryError::Closed),
                ) => {
                    return Err(error);
                }
                Err(error) => tracing::warn!(%id, %error, "an unfinished file cannot be checked"),
            }
            self.keep_up().await?;
        }
        let unsynced = !self.dirty.lock().is_empty() || !self.plan_fresh().is_empty();
        if unsynced {
            // In the background: nobody waits for the disk who only wants to begin.
            self.owes_sync.store(true, Ordering::Relaxed);
            self.flush_some_time.notify_one();
        }
        Ok(())
    }

    async fn recover_removals(self: &Arc<Self>) -> Result<(), LibraryError> {
        let tombs: Vec<(FileId, Record)> = {
            let state = self.state.lock();
            state.tombs.iter().map(|(id, tomb)| (*id, tomb.record.clone())).collect()
        };
        for (id, record) in tombs {
            // The removal may have stopped between its tombstone and the rest of the first step.
            let mut batch = Batch::new();
            layout::delete_records(&mut batch, &id, record.layout()?);
            self.commit_in_parts(batch, Durability::Durable).await?;
            let owners: Vec<FileId> = {
                let mut state = self.state.lock();
                state.remove(&id);
                state.collections_of(&id).collect()
            };
            let mut batch = Batch::new();
            for owner in owners {
                batch.delete(MEMBERS, layout::member_key(&id, &owner));
                self.state.lock().members.remove(&(id, owner));
            }
            self.commit_in_parts(batch, Durability::Buffered).await?;
            if let Err(error) = self.finish_removal(&id).await {
                tracing::warn!(%id, %error, "the content of a removed file is still there; trying again at the next start");
            }
        }
        let gone: BTreeSet<FileId> = {
            let state = self.state.lock();
            let owners: BTreeSet<FileId> = state.members.iter().map(|(_, owner)| *owner).collect();
            owners.into_iter().filter(|owner| !state.slots.contains_key(owner)).collect()
        };
        for owner in gone {
            self.disband(&owner).await?;
        }
        let garbage: Vec<FileId> = {
            let state = self.state.lock();
            state.slots.keys().filter(|id| state.is_garbage(id)).copied().collect()
        };
        self.remove_garbage(garbage).await
    }

    /// Hashes the pieces that may have been written but are not known to be synced. Of a file that has its name all may.
    async fn recover_dirty(self: &Arc<Self>, id: &FileId) -> Result<(), LibraryError> {
        let _guard = self.lock(id).await;
        let Some(file) = self.open_locked(id).await? else {
            return self.drop_dirty_pages(id).await;
        };
        let doubtful: Vec<PieceIndex> = {
            let bits = file.bits.lock();
            let intended = |piece: &PieceIndex| {
                (bits.finished || bits.intended.contains(*piece)) && !bits.have.contains(*piece)
            };
            file.layout().pieces().filter(intended).collect()
        };
        let mut written = 0;
        for piece in doubtful {
            if file.check_piece(piece).await? {
                let len = file.layout().len(piece) as u64;
                written += len;
                let mut bits = file.bits.lock();
                bits.have.insert(piece);
                bits.verified.insert(piece);
                bits.unsynced.insert(piece);
                bits.unsynced_bytes += len;
            }
        }
        let (full, finished) = {
            let bits = file.bits.lock();
            (bits.have.is_full(), bits.finished)
        };
        if finished && !full {
            self.unfinish(&file).await?;
        }
        // A file of the library's own has nothing left to do once it is whole.
        if full && matches!(file.bits.lock().store, Store::Database(_) | Store::File(_)) {
            file.bits.lock().finished = true;
        }
        if let Some(slot) = self.state.lock().slots.get_mut(id) {
            slot.have = file.have_count();
        }
        file.forget_intents();
        if written > 0 || full {
            self.mark_dirty(&file, written);
            return Ok(());
        }
        self.store_record(id, Durability::Buffered).await?;
        self.drop_dirty_pages(id).await
    }

    /// Not all of a file that has its name already survived: it is filled again.
    async fn unfinish(self: &Arc<Self>, file: &Arc<super::file::LibraryFile>) -> Result<(), LibraryError> {
        let id = file.id();
        let place = self.state.lock().slots.get(&id).map(|slot| slot.record.place.clone());
        let Some(Place::Linked { root, rel, state: layout::LinkState::Whole(mark) }) = place else {
            return Ok(());
        };
        let inode = mark.inode();
        let place = Place::Linked { root, rel, state: layout::LinkState::Whole(mark) };
        let part = layout::blocking(move || {
            let Some((root, rel)) = place.root_and_rel() else { return Ok(None) };
            let target = Target::reopen(root, rel, false, false)?;
            target.unfinish(inode)?;
            let file = target.open_part(inode)?;
            Ok(file.map(|file| super::file::PartFile { file, target }))
        })
        .await?;
        let Some(part) = part else { return self.withdraw_locked(&id).await };
        let state = layout::LinkState::Part { inode, executable: false, force: false };
        let place = Place::linked(part.target.root(), part.target.rel(), state);
        {
            let mut bits = file.bits.lock();
            bits.store = Store::Part(Arc::new(part));
            bits.finished = false;
        }
        if let Some(slot) = self.state.lock().slots.get_mut(&id) {
            slot.record.place = place;
            slot.stored = false;
            slot.proven = false;
        }
        Ok(())
    }

    async fn drop_dirty_pages(&self, id: &FileId) -> Result<(), LibraryError> {
        let mut batch = Batch::new();
        let mut range = KeyRange::prefix(id.as_bytes());
        loop {
            let page = self.index.scan(DIRTY, range.clone(), PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            for (key, _) in page {
                batch.delete(DIRTY, key);
            }
        }
        self.commit_in_parts(batch, Durability::Buffered).await
    }

    /// Removes content that belongs to no file: written before the index knew of it, and then came a crash.
    pub(super) async fn sweep(&self) -> Result<(), LibraryError> {
        match &self.content {
            ContentStore::Database(content) => {
                let content = DatabaseContent(Arc::clone(content));
                let mut last = None;
                while let Some(id) = content.next_id(last.as_ref()).await? {
                    self.check_open()?;
                    let _guard = self.lock(&id).await;
                    self.remove_unwanted(&id).await?;
                    last = Some(id);
                }
            }
            ContentStore::Files(dir) => {
                let listed = dir.clone();
                for id in layout::blocking(move || content_files::list(&listed)).await? {
                    self.check_open()?;
                    let _guard = self.lock(&id).await;
                    self.remove_unwanted(&id).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes what is in the library's own store of a file that does not need it. The caller holds the lock of the id.
    pub(super) async fn remove_unwanted(&self, id: &FileId) -> Result<(), LibraryError> {
        if self.is_wanted(id, &self.own_place()) {
            return Ok(());
        }
        tracing::info!(%id, "removing content that belongs to no file");
        match &self.content {
            ContentStore::Database(content) => DatabaseContent(Arc::clone(content)).remove(id, None).await,
            ContentStore::Files(dir) => {
                let (dir, id) = (dir.clone(), *id);
                layout::blocking(move || content_files::remove(&dir, &id)).await
            }
        }
    }

    fn is_wanted(&self, id: &FileId, place: &Place) -> bool {
        let state = self.state.lock();
        state.importing.contains_key(id)
            || state.tombs.contains_key(id)
            || state.slots.get(id).is_some_and(|slot| slot.record.place == *place)
    }
}
