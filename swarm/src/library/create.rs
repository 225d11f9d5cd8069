//! Creating files, and continuing with files that the library already contains.

use std::fs::File;
use std::sync::Arc;

use super::entry::{LibraryEvent, NewFile};
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::{FileState, FileStore, PartFile};
use super::layout::{self, ContentPlace, LinkState, Record};
use super::linked::LinkedFile;
use super::open_files::OpenFiles;
use super::output::{Destination, Found, Target};
use super::retarget::Retargeted;
use super::state::Slot;
use super::task::blocking;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{Batch, Bitmap, Durability, FileId, FileKind, Manifest};

impl OpenFiles {
    pub(super) async fn create(
        self: Arc<Self>,
        manifest: Manifest,
        new: NewFile,
        destination: Destination,
    ) -> Result<Arc<LibraryFile>> {
        let (file, copy) = self.create_or_open(manifest, new, destination).await?;
        if let Some(copy) = copy {
            file.reuse(copy).await?;
        }
        Ok(file)
    }

    /// Creates a file, or opens an existing one and moves its stored pieces to the destination. Also returns the file that
    /// will be replaced there.
    async fn create_or_open(
        self: &Arc<Self>,
        manifest: Manifest,
        new: NewFile,
        destination: Destination,
    ) -> Result<(Arc<LibraryFile>, Option<File>)> {
        let inner = &self.inner;
        inner.check_open()?;
        let (id, layout) = (manifest.id(), manifest.layout());
        let since = SystemClock.now();
        let manifest = Arc::new(manifest);
        let (mut moved, mut inspected) = (None, None);
        let (found, _guard) = loop {
            let guard = inner.lock(&id).await;
            inner.finish_removal(&id).await?;
            if let Some(file) = self.open_locked(&id).await? {
                let is_same = file.layout().size() == layout.size();
                if !is_same && file.layout().last().is_none_or(|last| file.has(last)) {
                    let (proven, claimed) = (file.layout().size(), layout.size());
                    return Err(LibraryError::WrongSize { id, proven, claimed });
                }
                let is_whole = matches!(inspected, Some(Found::Whole(..))) && !file.is_finished();
                if is_same && !is_whole {
                    if moved.is_some() || !file.moves_to(&destination).await? {
                        self.adopt(&id, new).await?;
                        return Ok((file, moved.flatten()));
                    }
                    drop(guard);
                    match self.retarget(&file, destination.clone()).await? {
                        Retargeted::Moved(copy) => moved = Some(copy),
                        Retargeted::Whole(found) => inspected = Some(found),
                        Retargeted::Retired => {}
                    }
                    continue;
                }
            }
            match inspected.take() {
                Some(found) => break (found, guard),
                // Without the lock, since hashing a large file at the destination takes long.
                None => {
                    drop(guard);
                    let (manifest, destination) = (Arc::clone(&manifest), destination.clone());
                    let found = blocking(move || Found::at(Target::resolve(&destination)?, &manifest));
                    inspected = Some(found.await?);
                }
            }
        };
        // A withdrawn file, one with an unproven size, or one that is whole at the destination, is created anew.
        let old = inner.state.lock().slots.get(&id).map(|slot| slot.record.clone());
        if let Some(old) = &old {
            self.reset(&id, old).await?;
        }
        let names = old.map_or_else(Vec::new, |old| old.names);

        let (store, place, complete, copy) = match found {
            Found::Library => {
                let place = inner.content.place();
                (self.open_own(&id, &place).await?, place, false, None)
            }
            Found::Whole(target, fingerprint) => {
                let linked = LinkedFile::new(id, target.path(), fingerprint, None);
                (FileStore::Linked(Arc::new(linked)), target.place(LinkState::Whole(fingerprint)), true, None)
            }
            Found::Free(target, copy) => {
                blocking(move || {
                    let (file, inode) = target.create_part()?;
                    let place = target.part_place(inode);
                    Ok((FileStore::Part(Arc::new(PartFile { file, target })), place, false, copy))
                })
                .await?
            }
        };
        let stored = if complete { Bitmap::full(layout) } else { Bitmap::empty(layout) };
        let mut file_state = FileState::new(layout, stored, store, complete);
        // The content was hashed just now. An unsettled fingerprint may hide a later write.
        let verified = matches!(&place, ContentPlace::Linked { state: LinkState::Whole(fingerprint), .. }
            if fingerprint.is_settled_by(since));
        if verified {
            file_state.verified = Bitmap::full(layout);
        }

        let published = names.iter().any(|name| name.published);
        let new_record = Record::new(layout.size(), new.kind, place, since);
        let record = Record { published, names, complete, ..new_record };
        let have = file_state.have.count();
        let file = LibraryFile::new(Arc::clone(inner), manifest, file_state);
        let mut batch = Batch::new();
        layout::put_hashes(&mut batch, &id, file.manifest().hashes());
        {
            let mut state = inner.state.lock();
            let mut slot = Slot::new(record, false, have);
            slot.verified = verified;
            state.insert(id, slot);
            if let Some(name) = new.name {
                state.add_name(&id, name, false);
            }
            if let Some(collection) = new.member_of {
                state.members.insert((id, collection));
            }
            // The record of an incomplete file with one piece is stored with its content, all others at once.
            if complete || !batch.is_empty() || layout.count() == 0 {
                state.put_record(&mut batch, &id);
            }
        }
        self.insert(&file);
        if !batch.is_empty() {
            if let Err(error) = inner.commit_in_parts(batch, Durability::Buffered).await {
                inner.state.lock().remove(&id);
                self.retire(&id);
                return Err(error);
            }
            inner.state.lock().set_stored(&id);
        }
        // Concurrent downloaders find each other through this event, so it precedes the first piece.
        if !complete && layout.count() > 1 {
            inner.notify(LibraryEvent::Added(id));
        }
        if complete {
            inner.mark_dirty(Arc::clone(&file) as _, 0);
            inner.notify(LibraryEvent::Added(id));
            inner.notify(LibraryEvent::Completed(id));
        }
        Ok((file, copy))
    }

    /// Adds a name and a collection to a file. The caller holds the lock of the id.
    async fn adopt(&self, id: &FileId, new: NewFile) -> Result<()> {
        {
            let mut state = self.inner.state.lock();
            let mut changed = false;
            if let Some(name) = new.name {
                changed |= state.add_name(id, name, false);
                changed |= state.set_executable(id, new.kind);
            }
            if let Some(collection) = new.member_of {
                changed |= state.members.insert((*id, collection));
            }
            if !changed {
                return Ok(());
            }
            if let Some(slot) = state.slots.get_mut(id) {
                slot.stored = false;
            }
        }
        self.inner.store_record(id, Durability::Buffered).await
    }

    /// Records the kind of a file.
    pub(super) async fn set_kind(&self, id: &FileId, kind: FileKind) -> Result<()> {
        self.inner.check_open()?;
        let _guard = self.inner.lock(id).await;
        if let Some(slot) = self.inner.state.lock().slots.get_mut(id) {
            slot.record.kind = kind;
            slot.stored = false;
        }
        self.inner.store_record(id, Durability::Buffered).await
    }

    /// Deletes the records and the content of a file that starts from the beginning. The caller holds the
    /// lock of the id.
    async fn reset(&self, id: &FileId, old: &Record) -> Result<()> {
        let mut batch = Batch::new();
        layout::delete_records(&mut batch, id, old.layout()?);
        self.inner.index.commit(batch, Durability::Buffered).await?;
        self.inner.state.lock().remove(id);
        self.retire(id);
        self.inner.remove_content(id, &old.place, old.layout()?).await
    }
}
