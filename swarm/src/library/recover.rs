//! Recovery after a crash: finishes removals and verifies pieces that were written but not synced.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::WithdrawReason;
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::{FileStore, PartFile};
use super::inner::LibraryInner;
use super::layout::{self, ContentPlace, DIRTY, LinkState, MEMBERS, Record};
use super::load::PAGE;
use super::open_files::OpenFiles;
use super::output::Target;
use super::task::blocking;
use enjambre_core::{Batch, Durability, FileId, KeyRange, PieceIndex, StorageExt};

impl OpenFiles {
    /// Repairs the state that a crash left. Files that cannot be repaired now are logged and do not prevent
    /// the start.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        self.recover_removals().await?;
        let inner = &self.inner;
        let mut dirty = BTreeSet::new();
        let mut entries = inner.index.entries(DIRTY, KeyRange::all(), PAGE);
        while let Some((key, _)) = entries.next().await? {
            dirty.insert(layout::split_page(DIRTY, &key)?.0);
        }
        {
            // A power cut may have lost the bitmaps of a file that already has its final name. In the
            // library's own store all pieces may be synced although the file was not finished.
            let state = inner.state.lock();
            let unfinished = state.slots.iter().filter(|(_, slot)| {
                let record = &slot.record;
                let full = || record.layout().is_ok_and(|layout| layout.count() == slot.have);
                !record.complete && record.withdrawn.is_none() && (record.place.path().is_some() || full())
            });
            dirty.extend(unfinished.map(|(id, _)| *id));
        }
        for id in inner.recover_small(dirty).await? {
            match self.recover_file(&id).await {
                Ok(()) => {}
                Err(
                    error @ (LibraryError::Storage(_) | LibraryError::Full { .. } | LibraryError::Closed),
                ) => {
                    return Err(error);
                }
                Err(error) => tracing::warn!(%id, %error, "recovery of an incomplete file failed"),
            }
            inner.keep_up().await?;
        }
        let unsynced = !inner.dirty.lock().is_empty() || inner.state.lock().unsynced_small.len() > 0;
        if unsynced {
            // The sync runs in the background and does not delay the start.
            inner.inherited_unsynced.store(true, Ordering::Relaxed);
            inner.flush_soon.notify_one();
        }
        Ok(())
    }

    async fn recover_removals(&self) -> Result<()> {
        let inner = &self.inner;
        let tombstones: Vec<(FileId, Record)> = {
            let state = inner.state.lock();
            state.tombstones.iter().map(|(id, tombstone)| (*id, tombstone.record.clone())).collect()
        };
        for (id, record) in tombstones {
            // The crash may have applied the tombstone, but not the rest of its batch.
            let mut batch = Batch::new();
            layout::delete_records(&mut batch, &id, record.layout()?);
            inner.commit_in_parts(batch, Durability::Durable).await?;
            let collections: Vec<FileId> = {
                let mut state = inner.state.lock();
                state.remove(&id);
                state.collections_of(&id).collect()
            };
            let mut batch = Batch::new();
            for collection in collections {
                batch.delete(MEMBERS, layout::member_key(&id, &collection));
                inner.state.lock().members.remove(&(id, collection));
            }
            inner.commit_in_parts(batch, Durability::Buffered).await?;
            if let Err(error) = inner.finish_removal(&id).await {
                tracing::warn!(%id, %error, "deleting the content of a removed file failed; retrying at the next start");
            }
        }
        let removed: BTreeSet<FileId> = {
            let state = inner.state.lock();
            let collections: BTreeSet<FileId> =
                state.members.iter().map(|(_, collection)| *collection).collect();
            collections.into_iter().filter(|id| !state.slots.contains_key(id)).collect()
        };
        for collection in removed {
            inner.disband(&collection).await?;
        }
        let garbage: Vec<FileId> = {
            let state = inner.state.lock();
            state.slots.keys().filter(|id| state.is_garbage(id)).copied().collect()
        };
        self.remove_garbage(garbage).await
    }

    /// Hashes the intended pieces of a file, or all pieces if a linked file has its final name.
    async fn recover_file(self: &Arc<Self>, id: &FileId) -> Result<()> {
        let inner = &self.inner;
        let _guard = inner.lock(id).await;
        let Some(file) = self.open_locked(id).await? else {
            return inner.delete_intended(id).await;
        };
        let candidates: Vec<PieceIndex> = {
            let state = file.state.lock();
            let is_candidate = |piece: &PieceIndex| {
                (state.finished || state.intended.contains(*piece)) && !state.have.contains(*piece)
            };
            file.layout().pieces().filter(is_candidate).collect()
        };
        let mut bytes = 0;
        for piece in candidates {
            if file.check_piece(piece).await? {
                let len = file.layout().len(piece);
                bytes += len as u64;
                file.state.lock().add_piece(piece, len);
            }
        }
        let (full, finished) = {
            let state = file.state.lock();
            (state.have.is_full(), state.finished)
        };
        if finished && !full {
            self.unfinish(&file).await?;
        }
        {
            // In the library's own store nothing is left to do once all pieces are stored.
            let mut state = file.state.lock();
            state.finished |= full && matches!(state.store, FileStore::Database(_) | FileStore::File(_));
        }
        if let Some(slot) = inner.state.lock().slots.get_mut(id) {
            slot.have = file.have_count();
        }
        file.reset_intended();
        if bytes > 0 || full {
            inner.mark_dirty(file, bytes);
            return Ok(());
        }
        inner.store_record(id, Durability::Buffered).await?;
        inner.delete_intended(id).await
    }

    /// Turns a linked file that lost content in a power cut back into a part file.
    async fn unfinish(&self, file: &LibraryFile) -> Result<()> {
        let id = file.id();
        let place = self.inner.state.lock().slots.get(&id).map(|slot| slot.record.place.clone());
        let Some(place @ ContentPlace::Linked { state: LinkState::Whole(fingerprint), .. }) = place else {
            return Ok(());
        };
        let inode = fingerprint.inode;
        let part = blocking(move || {
            let Some((root, rel)) = place.root_and_rel() else { return Ok(None) };
            let target = Target::reopen(root, rel, false, false)?;
            target.unfinish(inode)?;
            let file = target.open_part(inode)?;
            Ok(file.map(|file| PartFile { file, target }))
        })
        .await?;
        let Some(part) = part else { return self.withdraw_locked(&id, WithdrawReason::Changed).await };
        let place = part.target.part_place(inode);
        {
            let mut state = file.state.lock();
            state.store = FileStore::Part(Arc::new(part));
            state.finished = false;
        }
        if let Some(slot) = self.inner.state.lock().slots.get_mut(&id) {
            slot.record.place = place;
            slot.stored = false;
            slot.verified = false;
        }
        Ok(())
    }
}

impl LibraryInner {
    async fn delete_intended(&self, id: &FileId) -> Result<()> {
        let mut batch = Batch::new();
        let mut entries = self.index.entries(DIRTY, KeyRange::prefix(id.as_bytes()), PAGE);
        while let Some((key, _)) = entries.next().await? {
            batch.delete(DIRTY, key);
        }
        self.commit_in_parts(batch, Durability::Buffered).await
    }
}
