//! Small files that were added and are not known to be synced, and their part of a checkpoint.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::library::content::ContentStore;
use crate::library::content_files;
use crate::library::error::LibraryError;
use crate::library::file::Bits;
use crate::library::layout::{self, DIRTY, HAVE, Place};
use crate::library::shared::Shared;
use crate::machine::HashMap;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::PieceLayout;
use crate::storage::value::Batch;

/// From how many fresh files on a checkpoint begins, and at how many those who add more wait for it.
const SOFT_FRESH: usize = 8 * 1024;
const HARD_FRESH: usize = 32 * 1024;

/// The fresh files and their sizes.
#[derive(Debug, Default)]
pub(in crate::library) struct Fresh {
    files: HashMap<FileId, One>,
    bytes: u64,
    last: u64,
}

#[derive(Debug, Clone, Copy)]
struct One {
    size: u64,
    /// Which one it is of all that ever were fresh: a file may go and come again.
    number: u64,
}

impl Fresh {
    pub(in crate::library) fn insert(&mut self, id: FileId, size: u64) {
        self.remove(&id);
        self.bytes += size;
        self.last += 1;
        self.files.insert(id, One { size, number: self.last });
    }

    /// It is fresh no longer: opened, synced, changed or gone.
    pub(in crate::library) fn remove(&mut self, id: &FileId) -> bool {
        let one = self.files.remove(id);
        self.bytes -= one.map_or(0, |one| one.size);
        one.is_some()
    }

    pub(in crate::library) fn contains(&self, id: &FileId) -> bool {
        self.files.contains_key(id)
    }

    /// Whether it is fresh, and has been since the plan was made.
    fn is_of(&self, plan: &FreshPlan, id: &FileId) -> bool {
        self.files.get(id).is_some_and(|one| one.number <= plan.last)
    }

    pub(in crate::library) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there are enough to begin a checkpoint.
    pub(in crate::library) fn are_many(&self) -> bool {
        self.files.len() >= SOFT_FRESH
    }

    /// Whether there are too many to go on without a checkpoint.
    pub(in crate::library) fn are_too_many(&self) -> bool {
        self.files.len() >= HARD_FRESH
    }
}

/// What a checkpoint makes durable of the fresh files.
#[derive(Debug, Default)]
pub(in crate::library) struct FreshPlan {
    ids: Vec<FileId>,
    /// The number of the last file that was fresh when it was made.
    last: u64,
    pub(in crate::library) in_database: bool,
    folders: BTreeSet<PathBuf>,
}

impl FreshPlan {
    pub(in crate::library) fn ids(&self) -> impl Iterator<Item = FileId> {
        self.ids.iter().copied()
    }

    pub(in crate::library) const fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

impl Shared {
    /// What is to be synced of the fresh files.
    pub(in crate::library) fn plan_fresh(&self) -> FreshPlan {
        let state = self.state.lock();
        let mut plan = FreshPlan { last: state.fresh.last, ..FreshPlan::default() };
        for id in state.fresh.files.keys() {
            let Some(slot) = state.slots.get(id) else { continue };
            match (&slot.record.place, &self.content) {
                (Place::Database, _) => plan.in_database = true,
                (Place::Files, ContentStore::Files(dir)) => {
                    plan.folders.insert(dir.clone());
                }
                (place, _) => {
                    if let Some((root, _)) = place.root_and_rel()
                        && !plan.folders.contains(root)
                    {
                        plan.folders.insert(root.to_owned());
                    }
                }
            }
            plan.ids.push(*id);
        }
        plan
    }

    /// Syncs the file systems that the fresh files are on.
    pub(in crate::library) async fn sync_fresh(&self, plan: &FreshPlan) -> Result<(), LibraryError> {
        if plan.folders.is_empty() {
            return Ok(());
        }
        let folders = plan.folders.clone();
        layout::blocking(move || {
            let mut devices = HashSet::new();
            for folder in &folders {
                let failed = |error| LibraryError::io("sync", folder, error);
                match std::fs::metadata(folder) {
                    Ok(metadata) if devices.insert(metadata.dev()) => content_files::sync_all_of(folder)?,
                    Ok(_) => {}
                    // It went, and the files with it.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            Ok(())
        })
        .await
    }

    /// Adds to a checkpoint that the fresh files are complete. The caller has synced them and holds their locks.
    pub(in crate::library) fn put_fresh(&self, plan: &FreshPlan, batch: &mut Batch) {
        let mut state = self.state.lock();
        let state = &mut *state;
        for id in plan.ids.iter().filter(|id| state.fresh.is_of(plan, id)) {
            if let Some(slot) = state.slots.get_mut(id) {
                slot.record.complete = true;
                slot.stored = false;
            }
            state.put_record(batch, id);
            // One of the two, where a crash left it unfinished.
            batch.delete(HAVE, layout::page_key(id, 0));
            batch.delete(DIRTY, layout::page_key(id, 0));
        }
    }

    /// Takes note of how the checkpoint went.
    pub(in crate::library) fn end_fresh(&self, plan: &FreshPlan, applied: bool) {
        let mut state = self.state.lock();
        for id in &plan.ids {
            if !state.fresh.is_of(plan, id) {
                continue;
            }
            if applied {
                state.fresh.remove(id);
            }
            if let Some(slot) = state.slots.get_mut(id) {
                slot.stored = applied;
                slot.record.complete = applied;
            }
        }
    }
}

/// The bits of a fresh file that is opened: all of it is here, and nothing is synced.
pub(in crate::library) fn make_fresh(bits: &mut Bits, layout: PieceLayout) {
    bits.have = Bitmap::full(layout);
    bits.intended = Bitmap::full(layout);
    bits.unsynced = layout.pieces().collect();
    bits.unsynced_bytes = layout.size();
    bits.allocated = true;
    bits.finished = true;
}
