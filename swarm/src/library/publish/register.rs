//! Publishing in steps: scan, hash, import, and add the files to the index and their names to the outbox.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hash::{Hashed, hash_files};
use super::import::{EncodedCollection, Imports, Placement};
use super::scan::{Found, FoundFile, scan};
use super::{PublishError, PublishOptions, PublishProgress, Published, Skipped, publish_blocking};
use crate::library::entry::LibraryEvent;
use crate::library::error::{LibraryError, Result};
use crate::library::layout::{self, ContentPlace, FILES, LinkState, MAX_NAMES, MEMBERS, NameRecord, Record};
use crate::library::library::Library;
use crate::library::linked::{Fingerprint, LinkedFile};
use crate::library::open_files::OpenFiles;
use crate::library::state::Slot;
use crate::library::task::blocking;
use enjambre_core::runtime;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{Batch, Collection, Durability, FileId, FileKind, Manifest, Member, Name, UnixMillis};

impl Library {
    /// Hashes a file or directory and adds it to the library and to the outbox. The result is durable on
    /// return. The hashing threads call `progress` about once for each piece. Dropping the future cancels the
    /// hashing.
    pub async fn publish(
        &self,
        path: &Path,
        options: PublishOptions,
        progress: impl Fn(PublishProgress) + Send + Sync + 'static,
    ) -> Result<Published, PublishError> {
        let PublishOptions { name, store, secret, strict, exclude } = options;
        let (given, inner) = (path.to_owned(), Arc::clone(&self.inner));
        let since = SystemClock.now();
        let found = publish_blocking(move || {
            let mut found = scan(&given, name, strict, &exclude)?;
            if !store {
                let state = inner.state.lock();
                for file in &mut found.files {
                    file.known = state.known_link(&file.path, &file.fingerprint);
                }
            }
            Ok(Arc::new(found))
        })
        .await?;
        let (hashed, skipped) =
            hash_files(&self.inner, Arc::clone(&found), strict, Arc::new(progress)).await?;
        let mut found = Arc::unwrap_or_clone(found);
        let pairs = found.files.into_iter().zip(hashed);
        let (files, hashed): (Vec<FoundFile>, Vec<Hashed>) =
            pairs.filter_map(|(file, hashed)| Some((file, hashed?))).unzip();
        found.files = files;
        found.skipped.merge(skipped);
        if let Some(at) = hashed.iter().position(|file| Some(file.id) == secret) {
            return Err(PublishError::Key(found.files[at].path.clone()));
        }
        let collection = match found.kind {
            FileKind::File | FileKind::Executable => None,
            FileKind::Collection => {
                let members = found.files.iter().zip(&hashed).map(|(file, hashed)| Member {
                    path: file.member.clone(),
                    size: hashed.size,
                    id: hashed.id,
                    executable: hashed.executable,
                });
                Some(EncodedCollection::new(&Collection::with_directories(
                    members.collect(),
                    std::mem::take(&mut found.empty),
                )?)?)
            }
        };
        let (id, kind) = match (&collection, hashed.first()) {
            (Some(collection), _) => (collection.manifest.id(), FileKind::Collection),
            (None, Some(file)) => (file.id, FileKind::of_file(file.executable)),
            (None, None) => return Err(PublishError::Special(path.to_owned())),
        };
        let published = Published {
            id,
            name: found.name.clone(),
            kind,
            size: hashed.iter().map(|file| file.size).sum(),
            files: hashed.len() as u64,
            skipped: found.skipped.clone(),
        };
        let placement = if store { Placement::Copied } else { Placement::Linked };
        // In a task of its own, so that it completes even if the caller drops the future.
        let work = add(Arc::clone(&self.files), found, hashed, collection, placement, since);
        runtime::spawn(work).await.map_err(|_| LibraryError::Closed)??;
        Ok(published)
    }

    /// Adds a temporary file, which was hashed while it was written, to the library and to the outbox. The library takes the
    /// file itself if its content store is a directory on the same file system. The result is durable on return.
    pub async fn publish_temporary(
        &self,
        path: &Path,
        manifest: Manifest,
        name: Name,
        secret: Option<FileId>,
    ) -> Result<Published, PublishError> {
        let since = SystemClock.now();
        let (id, size) = (manifest.id(), manifest.layout().size());
        if Some(id) == secret {
            return Err(PublishError::Key(name.as_str().into()));
        }
        let path = path.to_owned();
        let found = publish_blocking(move || Found::temporary(path, name)).await?;
        let published = Published {
            id,
            name: found.name.clone(),
            kind: FileKind::File,
            size,
            files: 1,
            skipped: Skipped::default(),
        };
        let new = Some((manifest, found.files[0].fingerprint));
        let hashed = vec![Hashed { id, size, executable: false, new }];
        let work = add(Arc::clone(&self.files), found, hashed, None, Placement::Moved, since);
        runtime::spawn(work).await.map_err(|_| LibraryError::Closed)??;
        Ok(published)
    }
}

/// Imports the content unless it is linked, and adds the files to the index. `since` is a time before the
/// first read.
async fn add(
    files: Arc<OpenFiles>,
    found: Found,
    hashed: Vec<Hashed>,
    collection: Option<EncodedCollection>,
    placement: Placement,
    since: UnixMillis,
) -> Result<(), PublishError> {
    let mut imports = Imports::new(Arc::clone(&files.inner));
    if let Err(error) = imports.import(&found.files, &hashed, collection.as_ref(), placement).await {
        imports.discard().await;
        return Err(error);
    }
    let owner = collection.as_ref().map(|collection| collection.manifest.id());
    let (mut new, mut known) = (Vec::with_capacity(hashed.len() + 1), Vec::new());
    for (file, hashed) in found.files.iter().zip(hashed) {
        let Some((manifest, fingerprint)) = hashed.new else {
            known.extend(owner.map(|owner| (hashed.id, owner)));
            continue;
        };
        new.push(NewPublished {
            manifest,
            kind: FileKind::of_file(hashed.executable),
            name: owner.is_none().then(|| found.name.clone()),
            member_of: owner,
            linked: (placement == Placement::Linked).then(|| (file.path.clone(), fingerprint)),
            since,
        });
    }
    if let Some(EncodedCollection { manifest, .. }) = collection {
        let (kind, name) = (FileKind::Collection, Some(found.name.clone()));
        new.push(NewPublished { manifest, kind, name, member_of: None, linked: None, since });
    }
    // After an error the files may be registered all the same. If not, the next start removes the
    // imported content.
    Ok(files.register(new, known).await?)
}

/// A published file. This process hashed every piece of it.
#[derive(Debug)]
pub(in crate::library) struct NewPublished {
    pub(in crate::library) manifest: Manifest,
    pub(in crate::library) kind: FileKind,
    /// `None` for a member of a collection.
    pub(in crate::library) name: Option<Name>,
    pub(in crate::library) member_of: Option<FileId>,
    /// The linked file, or `None` for imported content.
    pub(in crate::library) linked: Option<(PathBuf, Fingerprint)>,
    /// A time before the first read.
    pub(in crate::library) since: UnixMillis,
}

struct Merged {
    record: Record,
    /// Whether it replaces a record with other content or an incomplete one.
    replaces: bool,
    /// Whether the link was hashed in the version with the stored fingerprint.
    verified: bool,
}

impl OpenFiles {
    /// Adds complete files with as few commits as possible. Collections come last in `files`. `known`
    /// contains pairs of already linked members and their collections.
    pub(in crate::library) async fn register(
        self: &Arc<Self>,
        files: Vec<NewPublished>,
        mut known: Vec<(FileId, FileId)>,
    ) -> Result<()> {
        let inner = &self.inner;
        inner.check_open()?;
        let ids = files.iter().map(|file| file.manifest.id()).chain(known.iter().map(|(id, _)| *id));
        let _guards = inner.lock_all(ids).await;
        for file in &files {
            // The next start would remove a file with a tombstone.
            inner.finish_removal(&file.manifest.id()).await?;
        }
        {
            let state = inner.state.lock();
            let complete = |slot: &Slot| slot.record.complete && slot.record.withdrawn.is_none();
            if let Some((gone, _)) = known.iter().find(|(id, _)| !state.slots.get(id).is_some_and(complete)) {
                // Removed or withdrawn since the scan.
                return Err(LibraryError::not_found(gone));
            }
            known.retain(|member| !state.members.contains(member));
        }
        // The same content may appear under several names.
        let mut merged: BTreeMap<FileId, Merged> = BTreeMap::new();
        let mut batch = Batch::new();
        let mut number = inner.state.lock().last_number;
        let mut acks = Vec::new();
        for file in &files {
            let id = file.manifest.id();
            let place = match &file.linked {
                Some((path, fingerprint)) => {
                    let (root, rel) = split(path)?;
                    ContentPlace::linked(root, rel, LinkState::Whole(*fingerprint))
                }
                None => inner.content.place(),
            };
            match merged.entry(id) {
                MapEntry::Occupied(mut known) => known.get_mut().record.add_copy(place),
                MapEntry::Vacant(vacant) => {
                    let old = inner.state.lock().slots.get(&id).map(|slot| slot.record.clone());
                    let mut new = self.merge(&id, old, place, file, &mut batch).await?;
                    layout::put_hashes(&mut batch, &id, file.manifest.hashes());
                    new.verified = file.linked.as_ref().is_some_and(|(path, fingerprint)| {
                        new.record.place.links_to(path, fingerprint) && fingerprint.is_settled_by(file.since)
                    });
                    vacant.insert(new);
                }
            }
            if let Some(collection) = &file.member_of {
                batch.put(MEMBERS, layout::member_key(&id, collection), vec![1]);
            }
            if let (Some(name), Some(Merged { record, .. })) = (&file.name, merged.get_mut(&id)) {
                number += 1;
                record.published = true;
                record.names.retain(|known| known.name != *name);
                record.names.push(NameRecord { name: name.clone(), number, published: true });
                if record.names.len() > MAX_NAMES {
                    record.names.remove(0);
                }
                // Without these the name is in the outbox of every catalogue again.
                let state = inner.state.lock();
                acks.extend(state.acks.keys().filter(|(_, of, ack)| *of == id && ack == name).cloned());
            }
        }
        for (id, collection) in &known {
            batch.put(MEMBERS, layout::member_key(id, collection), vec![1]);
        }
        for (id, Merged { record, .. }) in &merged {
            batch.put(FILES, layout::id_key(id), record.encode());
        }
        layout::delete_acks(&mut batch, &acks);
        inner.commit_in_parts(batch, Durability::Durable).await?;

        {
            let mut state = inner.state.lock();
            state.remove_acks(&acks);
            state.members.extend(known);
            for file in &files {
                if let Some(collection) = file.member_of {
                    state.members.insert((file.manifest.id(), collection));
                }
            }
            for (id, Merged { record, replaces, verified }) in &merged {
                let layout = record.layout()?;
                let mut slot = Slot::new(record.clone(), true, layout.count());
                let old = state.slots.get(id).filter(|_| !replaces);
                slot.verified = *verified || old.is_some_and(|old| old.verified);
                state.insert(*id, slot);
            }
        }
        for (id, _) in merged.iter().filter(|(_, merged)| merged.replaces) {
            self.retire(id);
        }
        let others: BTreeSet<FileId> = {
            let state = inner.state.lock();
            let replaced = merged.iter().filter(|(_, merged)| merged.replaces);
            let collections = replaced.flat_map(|(id, _)| state.collections_of(id));
            collections.filter(|collection| !merged.contains_key(collection)).collect()
        };
        // Their members may be complete again.
        for collection in others {
            inner.notify(LibraryEvent::Completed(collection));
        }
        // Members of a collection are not announced on their own.
        for (id, Merged { replaces, .. }) in
            merged.into_iter().filter(|(_, merged)| !merged.record.names.is_empty())
        {
            if replaces {
                inner.notify(LibraryEvent::Added(id));
            }
            inner.notify(LibraryEvent::Completed(id));
        }
        Ok(())
    }

    /// Merges a published file with the old record of the same content.
    async fn merge(
        &self,
        id: &FileId,
        old: Option<Record>,
        place: ContentPlace,
        file: &NewPublished,
        batch: &mut Batch,
    ) -> Result<Merged> {
        let new_record = Record::new(file.manifest.layout().size(), file.kind, place, file.since);
        let mut record = Record { complete: true, ..new_record };
        let Some(old) = old else { return Ok(Merged { record, replaces: true, verified: false }) };
        record.names.clone_from(&old.names);
        if file.name.is_none() {
            // The kind belongs to the names of the file.
            record.kind = old.kind;
        }
        record.published = old.published;
        let settled =
            file.linked.as_ref().is_none_or(|(_, fingerprint)| fingerprint.is_settled_by(old.added_ms));
        if settled {
            record.added_ms = old.added_ms;
        }
        // Content in the library's own store is worth more than a link. A link to a file that still exists is not
        // replaced, since the file may be open.
        let keeps_place = match (old.place.path(), old.place.fingerprint().copied()) {
            (None, _) => true,
            (Some(path), Some(fingerprint)) if record.place.fingerprint().is_some() => {
                record.copies.clone_from(&old.copies);
                let linked = LinkedFile::new(*id, path, fingerprint, None);
                old.place == record.place
                    || old.place.path() != record.place.path()
                        && blocking(move || Ok(linked.check().is_ok())).await?
            }
            _ => false,
        };
        if old.complete && old.withdrawn.is_none() && keeps_place {
            let new = std::mem::replace(&mut record.place, old.place);
            record.add_copy(new);
            return Ok(Merged { record, replaces: false, verified: false });
        }
        record.add_copy(old.place.clone());
        layout::delete_bitmaps(batch, id, record.layout()?);
        if old.place != record.place {
            // An incomplete download or another link; the complete file replaces it.
            self.inner.remove_content(id, &old.place, old.layout()?).await?;
        }
        Ok(Merged { record, replaces: true, verified: false })
    }
}

fn split(path: &Path) -> Result<(&Path, &Path)> {
    match (path.parent(), path.file_name()) {
        (Some(root), Some(name)) => Ok((root, Path::new(name))),
        _ => Err(LibraryError::BadPath { path: path.to_owned(), problem: "not the path of a file" }),
    }
}
