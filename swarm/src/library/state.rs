//! The index in memory: files, names, collections, tombstones and acknowledged publications.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::entry::{Entry, Location, MAX_WITHDRAWN, Origin, Totals};
use super::layout::{self, Ack, AckKey, ContentPlace, MAX_NAMES, NameRecord, Record};
use super::linked::Fingerprint;
use super::unsynced::UnsyncedSmallFiles;
use enjambre_core::runtime::HashMap;
use enjambre_core::{Batch, FileId, FileKind, Key, Name, Offer, PieceLayout, Space};

#[derive(Debug, Default)]
pub(super) struct LibraryState {
    pub(super) slots: BTreeMap<FileId, Slot>,
    pub(super) names: BTreeMap<Name, BTreeSet<(u64, FileId)>>,
    /// Pairs of member and collection.
    pub(super) members: BTreeSet<(FileId, FileId)>,
    pub(super) tombstones: HashMap<FileId, Tombstone>,
    /// The acknowledged publications.
    pub(super) acks: HashMap<AckKey, Ack>,
    pub(super) last_number: u64,
    /// Files without a record whose content is being imported, with the number of imports. The sweep ignores
    /// them.
    pub(super) importing: HashMap<FileId, usize>,
    /// Small files that were stored in a batch and are not known to be synced.
    pub(super) unsynced_small: UnsyncedSmallFiles,
    /// Linked files to hash in the background: offered ones whose metadata changed, and withdrawn ones that were found.
    pub(super) suspects: BTreeSet<FileId>,
    /// Linked files by the hash of their path, so that publishing an unchanged file again need not read it. Hashes may
    /// collide, so callers compare the path in the record.
    paths: HashMap<u64, FileId>,
}

#[derive(Debug, Clone)]
pub(super) struct Tombstone {
    pub(super) record: Record,
    /// After a commit with unknown outcome: further entries to delete, since the index may still contain the
    /// file.
    pub(super) uncertain: Option<Vec<(Space, Key)>>,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) record: Record,
    /// Whether the index contains this record.
    pub(super) stored: bool,
    pub(super) have: u32,
    /// Versions of the linked file that this process found to be invalid.
    pub(super) refuted: Vec<Fingerprint>,
    /// Whether this process hashed or wrote every piece of the linked file in the version that the record
    /// describes.
    pub(super) verified: bool,
}

impl Slot {
    pub(super) const fn new(record: Record, stored: bool, have: u32) -> Self {
        Self { record, stored, have, refuted: Vec::new(), verified: false }
    }

    /// The offer to other peers, if the file has a name and stored pieces.
    pub(super) fn offer(&self, id: FileId) -> Option<Offer> {
        let record = &self.record;
        let here = record.complete || self.have > 0;
        let offered = here && record.withdrawn.is_none() && !record.names.is_empty();
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
            have: if record.withdrawn.is_some() { 0 } else { self.have },
            origin: if record.published { Origin::Published } else { Origin::Downloaded },
            location: location(&record.place),
            added_ms: record.added_ms,
            withdrawn: record.withdrawn,
        }
    }
}

impl Totals {
    pub(super) fn add(&mut self, id: FileId, slot: &Slot) {
        let record = &slot.record;
        let pieces = record.layout().map_or(0, |layout| layout.count());
        if !record.names.is_empty() {
            self.named += 1;
            self.published += u64::from(record.published);
        }
        match (record.withdrawn, slot.have == pieces) {
            (Some(_), _) => self.withdrawn += 1,
            (None, true) => self.complete += 1,
            (None, false) => self.incomplete += 1,
        }
        if record.withdrawn.is_none() {
            // Approximate for an incomplete file, as in [`Entry::stored_bytes`].
            self.bytes +=
                (u128::from(record.size) * u128::from(slot.have) / u128::from(pieces.max(1))) as u64;
        } else if self.withdrawn_files.len() < MAX_WITHDRAWN {
            self.withdrawn_files.push(slot.entry(id));
        }
    }
}

fn location(place: &ContentPlace) -> Location {
    match place {
        ContentPlace::Database => Location::Database,
        ContentPlace::Files => Location::Files,
        ContentPlace::Linked { .. } => Location::Linked { path: place.path().unwrap_or_default() },
    }
}

impl LibraryState {
    pub(super) fn insert(&mut self, id: FileId, slot: Slot) {
        self.unsynced_small.remove(&id);
        self.index_path(&id, &slot.record);
        self.remove_names(&id);
        for name in &slot.record.names {
            self.names.entry(name.name.clone()).or_default().insert((name.number, id));
            self.last_number = self.last_number.max(name.number);
        }
        self.slots.insert(id, slot);
    }

    pub(super) fn remove(&mut self, id: &FileId) -> Option<Slot> {
        self.unsynced_small.remove(id);
        if let Some(path) = self.slots.get(id).and_then(|slot| slot.record.place.path()) {
            let hash = self.path_hash(&path);
            if self.paths.get(&hash) == Some(id) {
                self.paths.remove(&hash);
            }
        }
        self.remove_names(id);
        self.slots.remove(id)
    }

    /// Protects the content of a file without a record from the sweep until [`Self::end_import`].
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

    /// Adds a name to a file. Returns whether that changed anything. A published name becomes the newest one.
    pub(super) fn add_name(&mut self, id: &FileId, name: Name, published: bool) -> bool {
        let number = self.last_number + 1;
        let Some(slot) = self.slots.get_mut(id) else { return false };
        let names = &mut slot.record.names;
        let mut was_published = false;
        if let Some(at) = names.iter().position(|known| known.name == name) {
            if !published {
                return false;
            }
            was_published = names[at].published;
            let old = names.remove(at);
            remove_name(&mut self.names, &old, id);
        }
        let published = published || was_published;
        names.push(NameRecord { name: name.clone(), number, published });
        let surplus = (names.len() > MAX_NAMES).then(|| names.remove(0));
        slot.stored = false;
        slot.record.published |= published;
        self.last_number = number;
        self.names.entry(name).or_default().insert((number, *id));
        if let Some(surplus) = surplus {
            remove_name(&mut self.names, &surplus, id);
        }
        true
    }

    /// Takes over whether a download is executable. A published file keeps its kind, and the content determines whether it
    /// is a collection. Returns whether that changed anything.
    pub(super) fn set_executable(&mut self, id: &FileId, kind: FileKind) -> bool {
        let Some(slot) = self.slots.get_mut(id) else { return false };
        let record = &mut slot.record;
        let changed = !record.published && record.kind != kind;
        if !changed || [record.kind, kind].contains(&FileKind::Collection) {
            return false;
        }
        record.kind = kind;
        true
    }

    fn remove_names(&mut self, id: &FileId) {
        let Some(slot) = self.slots.get(id) else { return };
        for name in &slot.record.names {
            remove_name(&mut self.names, name, id);
        }
    }

    fn path_hash(&self, path: &Path) -> u64 {
        self.paths.hasher().hash_one(path.as_os_str().as_bytes())
    }

    /// Indexes the path of a linked file. Of several files with the same path the last one is kept.
    fn index_path(&mut self, id: &FileId, record: &Record) {
        let Some(path) = record.place.path() else { return };
        let hash = self.path_hash(&path);
        let other = self.paths.get(&hash).filter(|other| *other != id);
        let newer = other.and_then(|other| self.slots.get(other));
        if newer.is_none_or(|newer| newer.record.added_ms <= record.added_ms) {
            self.paths.insert(hash, *id);
        }
    }

    /// Returns the file that is linked at the path if all of it was hashed in the version with this
    /// fingerprint.
    pub(super) fn known_link(&self, path: &Path, fingerprint: &Fingerprint) -> Option<FileId> {
        let id = self.paths.get(&self.path_hash(path))?;
        let slot = self.slots.get(id)?;
        let record = &slot.record;
        let hashed = slot.verified || fingerprint.is_settled_by(record.added_ms);
        let known = record.place.links_to(path, fingerprint) && hashed;
        (known && record.complete && record.withdrawn.is_none()).then_some(*id)
    }

    pub(super) fn collections_of(&self, member: &FileId) -> impl Iterator<Item = FileId> {
        let member = *member;
        let (first, last) = (FileId::from_bytes([0; 32]), FileId::from_bytes([0xff; 32]));
        self.members.range((member, first)..=(member, last)).map(|(_, collection)| *collection)
    }

    /// Whether the file has no name and belongs to no collection.
    pub(super) fn is_garbage(&self, id: &FileId) -> bool {
        self.slots.get(id).is_some_and(|slot| slot.record.names.is_empty())
            && self.collections_of(id).next().is_none()
    }

    pub(super) fn acks_of(&self, is_wanted: impl Fn(&FileId) -> bool) -> Vec<AckKey> {
        self.acks.keys().filter(|(_, id, _)| is_wanted(id)).cloned().collect()
    }

    pub(super) fn remove_acks(&mut self, acks: &[AckKey]) {
        for ack in acks {
            self.acks.remove(ack);
        }
    }

    /// Puts the record of a file and its memberships unless the index contains them.
    pub(super) fn put_record(&self, batch: &mut Batch, id: &FileId) {
        let Some(slot) = self.slots.get(id).filter(|slot| !slot.stored) else { return };
        batch.put(layout::FILES, layout::id_key(id), slot.record.encode());
        for collection in self.collections_of(id) {
            batch.put(layout::MEMBERS, layout::member_key(id, &collection), vec![1]);
        }
    }

    pub(super) fn set_stored(&mut self, id: &FileId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.stored = true;
        }
    }
}

fn remove_name(names: &mut BTreeMap<Name, BTreeSet<(u64, FileId)>>, name: &NameRecord, id: &FileId) {
    if let Some(files) = names.get_mut(&name.name) {
        files.remove(&(name.number, *id));
        if files.is_empty() {
            names.remove(&name.name);
        }
    }
}
