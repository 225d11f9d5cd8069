//! Which linked file lies at a path, so that what is published again need not be read again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::layout::{LinkState, Place, Record};
use super::linked::Fingerprint;
use super::shared::{Shared, State};
use crate::model::id::FileId;

/// Linked files by their paths. Only the hashes of the paths are kept: whoever finds a file compares its record.
#[derive(Debug, Default)]
pub(super) struct Links {
    by_path: HashMap<u64, FileId>,
    hasher: RandomState,
}

impl Links {
    fn hash(&self, path: &Path) -> u64 {
        self.hasher.hash_one(path.as_os_str().as_bytes())
    }
}

impl State {
    /// Notes where a file is linked. Of several at one path the one that was added last is found.
    pub(super) fn link(&mut self, id: &FileId, record: &Record) {
        let Some(path) = record.place.path() else { return };
        let hash = self.links.hash(&path);
        let other = self.links.by_path.get(&hash).filter(|other| *other != id);
        let newer = other.and_then(|other| self.slots.get(other));
        if newer.is_none_or(|newer| newer.record.added_ms <= record.added_ms) {
            self.links.by_path.insert(hash, *id);
        }
    }

    pub(super) fn unlink(&mut self, id: &FileId) {
        let Some(path) = self.slots.get(id).and_then(|slot| slot.record.place.path()) else { return };
        let hash = self.links.hash(&path);
        if self.links.by_path.get(&hash) == Some(id) {
            self.links.by_path.remove(&hash);
        }
    }

    /// The file that is linked at the path, if what looks like this was hashed in whole.
    fn known_link(&self, path: &Path, mark: &Fingerprint) -> Option<FileId> {
        let id = self.links.by_path.get(&self.links.hash(path))?;
        let slot = self.slots.get(id)?;
        let record = &slot.record;
        let Place::Linked { state: LinkState::Whole(linked), .. } = &record.place else { return None };
        let same = linked == mark && record.place.path().is_some_and(|linked| linked == path);
        let hashed = slot.proven || mark.is_settled_by(record.added_ms);
        (same && hashed && record.complete && !record.withdrawn).then_some(*id)
    }
}

impl Shared {
    /// Which of these files are linked at their paths and look as they did when they were hashed.
    pub(crate) fn known_links<'a>(
        &self,
        files: impl Iterator<Item = (&'a Path, &'a Fingerprint)>,
    ) -> Vec<Option<FileId>> {
        let state = self.state.lock();
        files.map(|(path, mark)| state.known_link(path, mark)).collect()
    }
}
