//! Removing files: first a durable tombstone, then the content, then the tombstone. The sweep of content
//! without a file, and the imports that it must not disturb.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::content::{ContentStore, DatabaseContent, in_dir};
use super::content_files;
use super::entry::LibraryEvent;
use super::error::{LibraryError, Result};
use super::inner::LibraryInner;
use super::layout::{self, ACKS, ContentPlace, FILES, LinkState, MEMBERS, Record, TOMBS};
use super::open_files::OpenFiles;
use super::output::Target;
use super::state::Tombstone;
use super::task::blocking;
use enjambre_core::{Batch, Durability, FileId, Name, PieceLayout, StorageError};

/// The largest number of files in one commit of tombstones.
const BATCH_FILES: usize = 256;

impl OpenFiles {
    pub(super) async fn remove(self: Arc<Self>, id: FileId) -> Result<()> {
        self.inner.check_open()?;
        {
            let _guard = self.inner.lock(&id).await;
            let (known, pending) = {
                let state = self.inner.state.lock();
                (state.slots.contains_key(&id), state.tombstones.contains_key(&id))
            };
            match (known, pending) {
                (true, _) => {}
                (false, true) => return self.inner.finish_removal(&id).await,
                (false, false) => return Err(LibraryError::not_found(id)),
            }
        }
        if self.inner.remove_names(&id, None).await? {
            return Ok(());
        }
        self.remove_files(&[id], false).await?;
        let members = self.inner.disband(&id).await?;
        self.remove_garbage(members).await
    }

    pub(super) async fn remove_name(self: Arc<Self>, id: FileId, name: Name) -> Result<Option<Name>> {
        self.inner.check_open()?;
        if self.inner.remove_names(&id, Some(&name)).await? {
            let state = self.inner.state.lock();
            let left = state.slots.get(&id).and_then(|slot| slot.record.names.last());
            return Ok(left.map(|left| left.name.clone()));
        }
        self.remove(id).await.map(|()| None)
    }

    /// Removes those of the files that have no name and belong to no collection.
    pub(super) async fn remove_garbage(&self, candidates: Vec<FileId>) -> Result<()> {
        for some in candidates.chunks(BATCH_FILES) {
            self.remove_files(some, true).await?;
        }
        Ok(())
    }

    async fn remove_files(&self, ids: &[FileId], only_garbage: bool) -> Result<()> {
        let inner = &self.inner;
        let _guards = inner.lock_all(ids.iter().copied()).await;
        let unique: BTreeSet<FileId> = ids.iter().copied().collect();
        let (chosen, acks) = {
            let state = inner.state.lock();
            let wanted = unique.into_iter().filter(|id| !only_garbage || state.is_garbage(id));
            let chosen: Vec<(FileId, Record, Vec<FileId>)> = wanted
                .filter_map(|id| {
                    let record = state.slots.get(&id)?.record.clone();
                    Some((id, record, state.collections_of(&id).collect()))
                })
                .collect();
            let removed: BTreeSet<FileId> = chosen.iter().map(|(id, ..)| *id).collect();
            (chosen, state.acks_of(|id| removed.contains(id)))
        };
        // Tombstones first: opening the library finishes a removal whatever part of this batch was applied.
        let mut batch = Batch::new();
        for (id, record, collections) in &chosen {
            batch.put(TOMBS, layout::id_key(id), record.encode());
            layout::delete_records(&mut batch, id, record.layout()?);
            for collection in collections {
                batch.delete(MEMBERS, layout::member_key(id, collection));
            }
        }
        layout::delete_acks(&mut batch, &acks);
        // The files may be missing after the next start, so they must not be offered.
        let removed = inner.try_commit(batch, Durability::Durable).await?;
        let uncertain = removed.is_err();
        inner.state.lock().remove_acks(&acks);
        for (id, record, collections) in &chosen {
            {
                let mut state = inner.state.lock();
                for collection in collections {
                    state.members.remove(&(*id, *collection));
                }
                let members =
                    collections.iter().map(|collection| (MEMBERS, layout::member_key(id, collection)));
                let acks = acks.iter().filter(|(_, of, _)| of == id);
                let acks = acks.map(|ack| (ACKS, layout::ack_key(ack)));
                let uncertain = uncertain.then(|| members.chain(acks).collect());
                state.tombstones.insert(*id, Tombstone { record: record.clone(), uncertain });
                state.remove(id);
            }
            self.retire(id);
            inner.notify(LibraryEvent::Removed(*id));
        }
        removed?;
        for (id, ..) in &chosen {
            inner.finish_removal(id).await?;
        }
        Ok(())
    }
}

impl LibraryInner {
    /// Removes a name, or all names, of a file that has other names or belongs to a collection and therefore
    /// stays. Returns whether it is such a file.
    async fn remove_names(&self, id: &FileId, only: Option<&Name>) -> Result<bool> {
        let _guard = self.lock(id).await;
        let is_removed = |name: &Name| only.is_none_or(|only| name == only);
        let (record, acks) = {
            let state = self.state.lock();
            let Some(slot) = state.slots.get(id) else { return Ok(false) };
            let mut record = slot.record.clone();
            record.names.retain(|known| !is_removed(&known.name));
            let stays = !record.names.is_empty() || state.collections_of(id).next().is_some();
            if record.names.len() == slot.record.names.len() || !stays {
                return Ok(false);
            }
            let mut acks = state.acks_of(|of| of == id);
            acks.retain(|(.., name)| is_removed(name));
            (record, acks)
        };
        let unnamed = record.names.is_empty();
        let mut batch = Batch::new();
        batch.put(FILES, layout::id_key(id), record.encode());
        layout::delete_acks(&mut batch, &acks);
        self.commit_in_parts(batch, Durability::Durable).await?;
        {
            let mut state = self.state.lock();
            state.remove_acks(&acks);
            if let Some(mut slot) = state.remove(id) {
                slot.record.names = record.names;
                state.insert(*id, slot);
            }
        }
        if unnamed {
            self.notify(LibraryEvent::Removed(*id));
        }
        Ok(true)
    }

    /// Commits writes that need not be atomic. A failure with unknown outcome is returned as the inner error.
    pub(super) async fn try_commit(&self, batch: Batch, durability: Durability) -> Result<Result<()>> {
        let parts = self.is_in_parts(&batch);
        match self.commit_in_parts(batch, durability).await {
            Err(error)
                if !parts && !matches!(error, LibraryError::Storage(StorageError::Indeterminate { .. })) =>
            {
                Err(error)
            }
            outcome => Ok(outcome),
        }
    }

    /// Removes all members from a removed collection. Returns the former members.
    pub(super) async fn disband(&self, collection: &FileId) -> Result<Vec<FileId>> {
        let members: Vec<FileId> = {
            let state = self.state.lock();
            let of_it = state.members.iter().filter(|(_, owner)| owner == collection);
            of_it.map(|(member, _)| *member).collect()
        };
        let mut batch = Batch::new();
        for member in &members {
            batch.delete(MEMBERS, layout::member_key(member, collection));
        }
        // After an unknown outcome another collection with the same id stores its members again.
        let disbanded = self.try_commit(batch, Durability::Buffered).await?;
        {
            let mut state = self.state.lock();
            for member in &members {
                state.members.remove(&(*member, *collection));
            }
        }
        disbanded.map(|()| members)
    }

    /// Deletes the content and the tombstone of a removed file. Does nothing without a tombstone. The caller
    /// holds the lock of the id.
    pub(super) async fn finish_removal(&self, id: &FileId) -> Result<()> {
        let tombstone = self.state.lock().tombstones.get(id).cloned();
        let Some(Tombstone { record, uncertain }) = tombstone else { return Ok(()) };
        if let Some(others) = uncertain {
            let mut batch = Batch::new();
            batch.put(TOMBS, layout::id_key(id), record.encode());
            layout::delete_records(&mut batch, id, record.layout()?);
            for (space, key) in others {
                batch.delete(space, key);
            }
            self.commit_in_parts(batch, Durability::Durable).await?;
            if let Some(tombstone) = self.state.lock().tombstones.get_mut(id) {
                tombstone.uncertain = None;
            }
        }
        self.remove_content(id, &record.place, record.layout()?).await?;
        let mut batch = Batch::new();
        batch.delete(TOMBS, layout::id_key(id));
        self.index.commit(batch, Durability::Buffered).await?;
        self.state.lock().tombstones.remove(id);
        Ok(())
    }

    /// Deletes the content of a file in the library's own store, or its part file. Linked files stay, and so
    /// does content that is being imported: the import relies on it.
    pub(super) async fn remove_content(
        &self,
        id: &FileId,
        place: &ContentPlace,
        layout: PieceLayout,
    ) -> Result<()> {
        if *place == self.content.place() {
            if self.state.lock().importing.contains_key(id) {
                return Ok(());
            }
            return self.content.remove(id, Some(layout)).await;
        }
        let ContentPlace::Linked { state: LinkState::Part { inode, .. }, .. } = place else {
            return Ok(());
        };
        let (place, inode) = (place.clone(), *inode);
        blocking(move || {
            let Some((root, rel)) = place.root_and_rel() else { return Ok(()) };
            match Target::reopen(root, rel, false, false) {
                Ok(target) => target.remove_part(inode),
                // The directory does not exist any more, and neither does the part file.
                Err(_) => Ok(()),
            }
        })
        .await
    }

    /// Whether all content of the file is in the library's own store.
    pub(super) fn stores_completely(&self, id: &FileId) -> bool {
        let own = self.content.place();
        let state = self.state.lock();
        state.slots.get(id).is_some_and(|slot| slot.record.complete && slot.record.place == own)
    }

    /// Begins the import of a file and returns whether its content has to be written. Until
    /// `LibraryState::end_import` the content is protected from removals and from the sweep. The caller writes the
    /// content to the store and syncs it before it adds the record.
    pub(super) async fn begin_import(&self, id: &FileId) -> Result<bool> {
        let _guard = self.lock(id).await;
        self.finish_removal(id).await?;
        self.state.lock().begin_import(*id);
        Ok(!self.stores_completely(id))
    }

    /// Ends a failed import and removes its content, unless another file or import uses it.
    pub(super) async fn discard_import(&self, id: &FileId) -> Result<()> {
        let _guard = self.lock(id).await;
        self.state.lock().end_import(id);
        self.remove_orphan(id).await
    }

    /// Removes content without a file: a crash interrupted its import or download. Ends early if the library is closed.
    pub(super) async fn sweep(&self) -> Result<()> {
        match &self.content {
            ContentStore::Database(content) => {
                let content = DatabaseContent(Arc::clone(content));
                let mut last = None;
                while let Some(id) =
                    content.next_id(last.as_ref()).await?.filter(|_| !self.stop.is_cancelled())
                {
                    self.sweep_file(&id).await?;
                    last = Some(id);
                }
            }
            ContentStore::Files(dir) => {
                let ids = in_dir(dir, content_files::list).await?;
                for id in ids.into_iter().take_while(|_| !self.stop.is_cancelled()) {
                    self.sweep_file(&id).await?;
                }
            }
        }
        Ok(())
    }

    async fn sweep_file(&self, id: &FileId) -> Result<()> {
        let _guard = self.lock(id).await;
        self.remove_orphan(id).await
    }

    /// Removes content in the library's own store that no file, tombstone or import uses. The caller holds
    /// the lock of the id.
    async fn remove_orphan(&self, id: &FileId) -> Result<()> {
        let used = {
            let (own, state) = (self.content.place(), self.state.lock());
            state.importing.contains_key(id)
                || state.tombstones.contains_key(id)
                || state.slots.get(id).is_some_and(|slot| slot.record.place == own)
        };
        if used {
            return Ok(());
        }
        tracing::info!(%id, "removing content without a file");
        self.content.remove(id, None).await
    }
}
