//! Data to sync at a checkpoint: open files with unsynced changes, and small files.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;

use super::content_files::ToSync;
use enjambre_core::runtime::HashMap;
use enjambre_core::{Batch, FileId, PieceIndex};

/// The changes of one file that a checkpoint makes durable.
#[derive(Debug)]
pub(super) struct CheckpointPlan {
    pub(super) pieces: Vec<PieceIndex>,
    pub(super) bytes: u64,
    pub(super) finished: bool,
    pub(super) in_database: bool,
    pub(super) to_sync: Option<ToSync>,
}

/// A file with changes that the index or the disk does not have yet.
pub(super) trait Unsynced: Debug + Send + Sync {
    fn id(&self) -> FileId;

    fn plan_checkpoint(&self) -> CheckpointPlan;

    /// Adds the index records of the plan to a batch. The caller has synced the content and holds the lock of
    /// the id.
    fn put_checkpoint(&self, plan: &CheckpointPlan, batch: &mut Batch);

    /// Records whether the batch was committed. Returns the number of bytes that became durable and whether
    /// nothing is left to sync.
    fn end_checkpoint(&self, plan: &CheckpointPlan, committed: bool) -> (u64, bool);

    /// Whether the index and the disk have all changes.
    fn is_clean(&self) -> bool;
}

#[derive(Debug, Default)]
pub(super) struct UnsyncedSmallFiles {
    files: HashMap<FileId, UnsyncedSmallFile>,
    pub(super) bytes: u64,
    last: u64,
}

#[derive(Debug, Clone, Copy)]
struct UnsyncedSmallFile {
    size: u64,
    /// The number of the insertion, since a file may be removed and added again.
    number: u64,
}

impl UnsyncedSmallFiles {
    pub(super) fn insert(&mut self, id: FileId, size: u64) {
        self.remove(&id);
        self.bytes += size;
        self.last += 1;
        self.files.insert(id, UnsyncedSmallFile { size, number: self.last });
    }

    /// Removes a file that was opened, synced, changed or removed.
    pub(super) fn remove(&mut self, id: &FileId) {
        if let Some(file) = self.files.remove(id) {
            self.bytes -= file.size;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// The files with the numbers of their insertions.
    pub(super) fn numbers(&self) -> impl Iterator<Item = (FileId, u64)> {
        self.files.iter().map(|(id, file)| (*id, file.number))
    }

    /// The number of the insertion of a file, if it is unsynced.
    pub(super) fn number(&self, id: &FileId) -> Option<u64> {
        self.files.get(id).map(|file| file.number)
    }
}

/// The small files that a checkpoint makes durable.
#[derive(Debug, Default)]
pub(super) struct SmallFilesPlan {
    /// The files with the numbers of their insertions.
    pub(super) files: Vec<(FileId, u64)>,
    pub(super) in_database: bool,
    /// Directories on the file systems to sync.
    pub(super) dirs: BTreeSet<PathBuf>,
}
