//! What this peer publishes: files taken into the library, and which catalogues know their names.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::content::{ContentStore, DatabaseContent};
use super::content_files::{self, ContentFile};
use super::entry::LibraryEvent;
use super::error::LibraryError;
use super::layout::{self, ACKS, LinkState, Place, Record};
use super::linked::Fingerprint;
use super::shared::{Shared, Slot};
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::PieceIndex;
use crate::model::manifest::Manifest;
use crate::model::name::Name;
use crate::model::record::{FileKind, Publication};
use crate::storage::value::{Batch, Durability};

/// A file that is published, every piece of which was hashed here.
#[derive(Debug)]
pub(crate) struct NewPublished {
    pub(crate) manifest: Manifest,
    pub(crate) kind: FileKind,
    /// None for a member of a collection.
    pub(crate) name: Option<Name>,
    pub(crate) member_of: Option<FileId>,
    /// Where the user's file is; none where the content was imported.
    pub(crate) linked: Option<(std::path::PathBuf, Fingerprint)>,
    /// When it was begun, before it was read, in milliseconds since 1970-01-01 UTC.
    pub(crate) since_ms: u64,
}

impl Shared {
    /// Copies pieces into the library's own store. The caller syncs it with [`Self::sync_imports`] before the file
    /// is added, and ends with [`Self::end_import`] in any case.
    pub(crate) async fn import(
        &self,
        id: &FileId,
        pieces: Vec<(PieceIndex, Bytes)>,
        layout: crate::model::layout::PieceLayout,
    ) -> Result<(), LibraryError> {
        self.check_open()?;
        match &self.content {
            ContentStore::Database(content) => DatabaseContent(Arc::clone(content)).write(id, &pieces).await,
            ContentStore::Files(dir) => {
                let (dir, id) = (dir.clone(), *id);
                layout::blocking(move || {
                    let file = ContentFile::open(&dir, &id)?;
                    pieces.iter().try_for_each(|(piece, content)| file.write(layout, *piece, content))
                })
                .await
            }
        }
    }

    /// Whether the library has the whole file in a store of its own.
    pub(super) fn holds_itself(&self, id: &FileId) -> bool {
        let own = self.own_place();
        let state = self.state.lock();
        state.slots.get(id).is_some_and(|slot| slot.record.complete && slot.record.place == own)
    }

    /// Whether the content of a file that is to be added is still to be copied in. Whatever is removed until
    /// [`Self::end_import`], the content stays.
    pub(crate) async fn begin_import(&self, id: &FileId) -> Result<bool, LibraryError> {
        let _guard = self.lock(id).await;
        self.finish_removal(id).await?;
        self.state.lock().begin_import(*id);
        Ok(!self.holds_itself(id))
    }

    pub(crate) fn end_import(&self, id: &FileId) {
        self.state.lock().end_import(id);
    }

    /// As [`Self::end_import`], of content that is not needed after all unless another file has it.
    pub(crate) async fn discard_import(&self, id: &FileId) -> Result<(), LibraryError> {
        let _guard = self.lock(id).await;
        self.end_import(id);
        self.remove_unwanted(id).await
    }

    pub(crate) async fn sync_imports(&self) -> Result<(), LibraryError> {
        match &self.content {
            ContentStore::Database(content) => Ok(content.sync().await?),
            ContentStore::Files(dir) => {
                let dir = dir.clone();
                layout::blocking(move || content_files::sync_all_of(&dir)).await
            }
        }
    }

    /// Adds files that are there in whole, with as few commits as they fit in. Collections come last in `files`.
    /// Of `known` ones, which are linked already, it is noted which collection they are members of.
    pub(crate) async fn add_published(
        self: &Arc<Self>,
        files: Vec<NewPublished>,
        mut known: Vec<(FileId, FileId)>,
    ) -> Result<(), LibraryError> {
        self.check_open()?;
        let ids = files.iter().map(|file| file.manifest.id()).chain(known.iter().map(|(id, _)| *id));
        let _guards = self.lock_all(ids).await;
        for file in &files {
            // A tombstone that is left would have the next start remove it.
            self.finish_removal(&file.manifest.id()).await?;
        }
        {
            let state = self.state.lock();
            let whole = |slot: &Slot| slot.record.complete && !slot.record.withdrawn;
            if let Some((gone, _)) = known.iter().find(|(id, _)| !state.slots.get(id).is_some_and(whole)) {
                // Removed or withdrawn since it was looked at.
                return Err(LibraryError::not_found(gone));
            }
            known.retain(|member| !state.members.contains(member));
        }
        // One file may be there several times, under several names.
        let mut records: BTreeMap<FileId, (Record, bool)> = BTreeMap::new();
        // What was hashed from where it stays, and cannot have changed unnoticed since, is not hashed again.
        let mut proven: BTreeSet<FileId> = BTreeSet::new();
        let mut batch = Batch::new();
        let mut number = self.state.lock().last_number;
        let mut acknowledged = Vec::new();
        for file in &files {
            let id = file.manifest.id();
            if let MapEntry::Vacant(vacant) = records.entry(id) {
                let known = self.state.lock().slots.get(&id).map(|slot| slot.record.clone());
                let place = match &file.linked {
                    Some((path, mark)) => {
                        let (root, rel) = split(path)?;
                        Place::linked(root, rel, LinkState::Whole(*mark))
                    }
                    None => self.own_place(),
                };
                let (record, replaced) = self.merge(&id, known, place, file, &mut batch).await?;
                layout::put_hashes(&mut batch, &id, file.manifest.hashes());
                if let (Some((_, mark)), Place::Linked { state, .. }) = (&file.linked, &record.place)
                    && *state == LinkState::Whole(*mark)
                    && mark.is_settled_by(file.since_ms)
                {
                    proven.insert(id);
                }
                vacant.insert((record, replaced));
            }
            if let Some(collection) = &file.member_of {
                batch.put(layout::MEMBERS, layout::member_key(&id, collection), vec![1]);
            }
            if let (Some(name), Some((record, _))) = (&file.name, records.get_mut(&id)) {
                number += 1;
                record.published = true;
                record.names.retain(|known| known.name != *name);
                record.names.push(layout::NameRecord { name: name.clone(), number, published: true });
                if record.names.len() > layout::MAX_NAMES {
                    record.names.remove(0);
                }
                let state = self.state.lock();
                let acks = state.acks.iter().filter(|(_, known, ack)| *known == id && ack == name);
                acknowledged.extend(acks.cloned());
            }
        }
        for (id, collection) in &known {
            batch.put(layout::MEMBERS, layout::member_key(id, collection), vec![1]);
        }
        for (id, (record, _)) in &records {
            batch.put(layout::FILES, layout::id_key(id), record.encode());
        }
        for (catalogue, id, name) in &acknowledged {
            batch.delete(ACKS, layout::ack_key(catalogue, id, name));
        }
        self.commit_in_parts(batch, Durability::Durable).await?;

        let mut retired = Vec::new();
        {
            let mut state = self.state.lock();
            for ack in &acknowledged {
                state.acks.remove(ack);
            }
            state.members.extend(known);
            for file in &files {
                if let Some(collection) = file.member_of {
                    state.members.insert((file.manifest.id(), collection));
                }
            }
            for (id, (record, replaced)) in &records {
                let layout = record.layout()?;
                let mut slot = Slot::new(record.clone(), true, layout.count());
                slot.proven = proven.contains(id);
                if let Some(old) = state.slots.get(id) {
                    if *replaced {
                        retired.extend(old.file.upgrade());
                    } else {
                        slot.file = old.file.clone();
                        slot.proven |= old.proven;
                    }
                }
                state.insert(*id, slot);
            }
        }
        for file in retired {
            file.retire_from();
        }
        // A member of a collection is nobody's business by itself.
        for (id, (_, replaced)) in records.into_iter().filter(|(_, (record, _))| !record.names.is_empty()) {
            if replaced {
                self.tell(LibraryEvent::Added(id));
            }
            self.tell(LibraryEvent::Completed(id));
        }
        Ok(())
    }

    /// The record of a published file, and whether it takes the place of one whose content is elsewhere.
    async fn merge(
        &self,
        id: &FileId,
        known: Option<Record>,
        place: Place,
        file: &NewPublished,
        batch: &mut Batch,
    ) -> Result<(Record, bool), LibraryError> {
        let mut record = Record {
            size: file.manifest.layout().size(),
            kind: file.kind,
            published: false,
            place,
            names: Vec::new(),
            added_ms: file.since_ms,
            complete: true,
            withdrawn: false,
        };
        let Some(known) = known else { return Ok((record, true)) };
        record.names.clone_from(&known.names);
        record.published = known.published;
        let settled = file.linked.as_ref().is_none_or(|(_, mark)| mark.is_settled_by(known.added_ms));
        if settled {
            record.added_ms = known.added_ms;
        }
        let own = |place: &Place| !matches!(place, Place::Linked { .. });
        let known_place_is_best = own(&known.place) || known.place == record.place;
        if known.complete && !known.withdrawn && known_place_is_best {
            // What the library holds itself stays there: that is worth more than a link.
            record.place = known.place;
            return Ok((record, false));
        }
        layout::delete_bitmaps(batch, id, record.layout()?);
        if known.place != record.place {
            // A download that was under way, or another link; the whole file is here now.
            self.remove_content(id, &known).await?;
        }
        Ok((record, true))
    }

    pub(super) fn pending_publications(&self, catalogue: [u8; 16]) -> Vec<Publication> {
        let state = self.state.lock();
        let mut pending = Vec::new();
        for (id, slot) in &state.slots {
            let record = &slot.record;
            if !record.published || !record.complete || record.withdrawn {
                continue;
            }
            for name in record.names.iter().filter(|name| name.published) {
                if !state.acks.contains(&(catalogue, *id, name.name.clone())) {
                    let publication = Publication {
                        name: name.name.clone(),
                        id: *id,
                        size: record.size,
                        kind: record.kind,
                    };
                    pending.push((name.number, publication));
                }
            }
        }
        // In the order of publishing, so that the newest of a name is the newest in the catalogue too.
        pending.sort_by_key(|(number, _)| *number);
        pending.into_iter().map(|(_, publication)| publication).collect()
    }

    pub(super) async fn mark_published(
        &self,
        catalogue: [u8; 16],
        id: &FileId,
        name: &Name,
    ) -> Result<(), LibraryError> {
        self.check_open()?;
        let _guard = self.lock(id).await;
        let known = {
            let state = self.state.lock();
            state.slots.get(id).is_some_and(|slot| slot.record.names.iter().any(|known| known.name == *name))
        };
        if !known {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.put(ACKS, layout::ack_key(&catalogue, id, name), vec![1]);
        self.index.commit(batch, Durability::Buffered).await?;
        self.state.lock().acks.insert((catalogue, *id, name.clone()));
        Ok(())
    }
}

/// The folder and the name of a file.
fn split(path: &Path) -> Result<(&Path, &Path), LibraryError> {
    match (path.parent(), path.file_name()) {
        (Some(root), Some(name)) => Ok((root, Path::new(name))),
        _ => Err(LibraryError::BadPath { path: path.to_owned(), problem: "it is not the path of a file" }),
    }
}

/// Every piece of a layout that is held.
pub(super) fn held(bitmap: &Bitmap, layout: crate::model::layout::PieceLayout) -> Vec<PieceIndex> {
    layout.pieces().filter(|piece| bitmap.contains(*piece)).collect()
}
