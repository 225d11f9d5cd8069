//! Removing files: a durable tombstone, then the content, then the tombstone.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::entry::LibraryEvent;
use super::error::LibraryError;
use super::layout::{self, ACKS, FILES, MEMBERS, Record, TOMBS};
use super::shared::{Shared, Tomb};
use crate::model::id::FileId;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};

/// How many files go with one tombstone commit.
const AT_ONCE: usize = 256;

impl Shared {
    pub(super) async fn remove(self: Arc<Self>, id: FileId) -> Result<(), LibraryError> {
        self.check_open()?;
        {
            let _guard = self.lock(&id).await;
            if !self.state.lock().slots.contains_key(&id) {
                let pending = self.state.lock().tombs.contains_key(&id);
                return if pending {
                    self.finish_removal(&id).await
                } else {
                    Err(LibraryError::not_found(id))
                };
            }
        }
        if self.take_names(&id).await? {
            return Ok(());
        }
        self.bury(&[id], false).await?;
        let members = self.disband(&id).await?;
        self.remove_garbage(members).await
    }

    /// Takes the names of a file that a collection needs, which stays for its sake; says whether it was such a file.
    async fn take_names(&self, id: &FileId) -> Result<bool, LibraryError> {
        let _guard = self.lock(id).await;
        let (record, acks) = {
            let state = self.state.lock();
            let Some(slot) = state.slots.get(id) else { return Ok(false) };
            if slot.record.names.is_empty() || state.collections_of(id).next().is_none() {
                return Ok(false);
            }
            let acks: Vec<_> = state.acks.iter().filter(|(_, of, _)| of == id).cloned().collect();
            (Record { names: Vec::new(), ..slot.record.clone() }, acks)
        };
        let mut batch = Batch::new();
        batch.put(FILES, layout::id_key(id), record.encode());
        for (catalogue, id, name) in &acks {
            batch.delete(ACKS, layout::ack_key(catalogue, id, name));
        }
        self.commit_in_parts(batch, Durability::Durable).await?;
        let mut state = self.state.lock();
        for ack in &acks {
            state.acks.remove(ack);
        }
        if let Some(mut slot) = state.remove(id) {
            slot.record.names.clear();
            state.insert(*id, slot);
        }
        drop(state);
        self.tell(LibraryEvent::Removed(*id));
        Ok(true)
    }

    /// Removes those of the files that have neither a name nor a collection.
    pub(super) async fn remove_garbage(&self, candidates: Vec<FileId>) -> Result<(), LibraryError> {
        for some in candidates.chunks(AT_ONCE) {
            self.bury(some, true).await?;
        }
        Ok(())
    }

    /// Takes every member out of a collection that is gone. Returns the members.
    pub(super) async fn disband(&self, collection: &FileId) -> Result<Vec<FileId>, LibraryError> {
        let members: Vec<FileId> = {
            let state = self.state.lock();
            let of_it = state.members.iter().filter(|(_, owner)| owner == collection);
            of_it.map(|(member, _)| *member).collect()
        };
        let mut batch = Batch::new();
        for member in &members {
            batch.delete(MEMBERS, layout::member_key(member, collection));
        }
        let parts = self.is_in_parts(&batch);
        let disbanded = self.commit_in_parts(batch, Durability::Buffered).await;
        // Where nobody knows whether they are taken out they count as such: then a collection that has them again says so.
        match &disbanded {
            Ok(()) | Err(LibraryError::Storage(StorageError::Indeterminate { .. })) => {}
            Err(_) if parts => {}
            Err(_) => return disbanded.map(|()| Vec::new()),
        }
        {
            let mut state = self.state.lock();
            for member in &members {
                state.members.remove(&(*member, *collection));
            }
        }
        disbanded.map(|()| members)
    }

    async fn bury(&self, ids: &[FileId], only_garbage: bool) -> Result<(), LibraryError> {
        let _guards = self.lock_all(ids.iter().copied()).await;
        let unique: BTreeSet<FileId> = ids.iter().copied().collect();
        let chosen: Vec<(FileId, Record, Vec<FileId>)> = {
            let state = self.state.lock();
            let wanted = unique.into_iter().filter(|id| !only_garbage || state.is_garbage(id));
            wanted
                .filter_map(|id| {
                    let record = state.slots.get(&id)?.record.clone();
                    Some((id, record, state.collections_of(&id).collect()))
                })
                .collect()
        };
        // The tombstone comes first: whatever part of this is applied is finished when the library opens.
        let mut batch = Batch::new();
        for (id, record, collections) in &chosen {
            batch.put(TOMBS, layout::id_key(id), record.encode());
            layout::delete_records(&mut batch, id, record.layout()?);
            for collection in collections {
                batch.delete(MEMBERS, layout::member_key(id, collection));
            }
        }
        let acks: Vec<_> = {
            let gone: BTreeSet<FileId> = chosen.iter().map(|(id, ..)| *id).collect();
            self.state.lock().acks.iter().filter(|(_, id, _)| gone.contains(id)).cloned().collect()
        };
        for (catalogue, id, name) in &acks {
            batch.delete(ACKS, layout::ack_key(catalogue, id, name));
        }
        let parts = self.is_in_parts(&batch);
        let buried = self.commit_in_parts(batch, Durability::Durable).await;
        // Where nobody knows whether they are buried they count as such: they may be gone at the next start, so they must
        // not be what somebody who wants them now is told to have.
        let doubtful = match &buried {
            Ok(()) => false,
            Err(LibraryError::Storage(StorageError::Indeterminate { .. })) => true,
            Err(_) if parts => true,
            Err(_) => return buried,
        };
        {
            let mut state = self.state.lock();
            for ack in &acks {
                state.acks.remove(ack);
            }
        }
        for (id, record, collections) in &chosen {
            let file = {
                let mut state = self.state.lock();
                for collection in collections {
                    state.members.remove(&(*id, *collection));
                }
                let members =
                    collections.iter().map(|collection| (MEMBERS, layout::member_key(id, collection)));
                let acks = acks.iter().filter(|(_, of, _)| of == id);
                let acks = acks.map(|(catalogue, id, name)| (ACKS, layout::ack_key(catalogue, id, name)));
                let doubtful = doubtful.then(|| members.chain(acks).collect());
                state.tombs.insert(*id, Tomb { record: record.clone(), doubtful });
                state.remove(id).and_then(|slot| slot.file.upgrade())
            };
            if let Some(file) = file {
                file.retire_from();
            }
            self.tell(LibraryEvent::Removed(*id));
        }
        buried?;
        for (id, ..) in &chosen {
            self.finish_removal(id).await?;
        }
        Ok(())
    }

    /// Removes the content of a file that has a tombstone, if it has one. The caller holds the lock of the id.
    pub(super) async fn finish_removal(&self, id: &FileId) -> Result<(), LibraryError> {
        let Some(Tomb { record, doubtful }) = self.state.lock().tombs.get(id).cloned() else { return Ok(()) };
        if let Some(others) = doubtful {
            let mut batch = Batch::new();
            batch.put(TOMBS, layout::id_key(id), record.encode());
            layout::delete_records(&mut batch, id, record.layout()?);
            for (space, key) in others {
                batch.delete(space, key);
            }
            self.commit_in_parts(batch, Durability::Durable).await?;
            if let Some(tomb) = self.state.lock().tombs.get_mut(id) {
                tomb.doubtful = None;
            }
        }
        self.remove_content(id, &record).await?;
        let mut batch = Batch::new();
        batch.delete(TOMBS, layout::id_key(id));
        self.index.commit(batch, Durability::Buffered).await?;
        self.state.lock().tombs.remove(id);
        Ok(())
    }
}
