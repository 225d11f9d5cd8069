//! The state of an open file: which pieces are stored, and where the content is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::DatabaseContent;
use super::content_files::{ContentFile, ToSync};
use super::linked::LinkedFile;
use super::output::Target;
use enjambre_core::{Bitmap, PieceIndex, PieceLayout};

#[derive(Debug)]
pub(super) struct FileState {
    /// Stored pieces, synced or not.
    pub(super) have: Bitmap,
    /// Stored pieces that survive a power cut.
    pub(super) synced: Bitmap,
    /// Pieces that the index records as possibly written, but not as synced.
    pub(super) intended: Bitmap,
    /// Requested pieces; the next record of intended pieces includes them.
    pub(super) expected: BTreeSet<PieceIndex>,
    /// Whether a task is recording the expected pieces as intended.
    pub(super) recording: bool,
    pub(super) unsynced: BTreeSet<PieceIndex>,
    pub(super) unsynced_bytes: u64,
    /// Pieces that were written or hashed since the file was opened.
    pub(super) verified: Bitmap,
    pub(super) store: FileStore,
    pub(super) allocated: bool,
    pub(super) finished: bool,
    /// The directories with unsynced entries for the file.
    pub(super) unsynced_dirs: Vec<PathBuf>,
    /// Whether the library dropped the file: it was removed, replaced or withdrawn.
    pub(super) retired: bool,
}

#[derive(Debug, Clone)]
pub(super) enum FileStore {
    Database(DatabaseContent),
    File(Arc<ContentFile>),
    Part(Arc<PartFile>),
    Linked(Arc<LinkedFile>),
}

impl FileStore {
    /// The directories that may have new entries for a file which was created here.
    pub(super) fn dirs(&self) -> Vec<PathBuf> {
        let parent = |path: &Path| path.parent().map(Path::to_owned).into_iter().collect();
        match self {
            Self::Database(_) => Vec::new(),
            Self::File(file) => parent(&file.path),
            Self::Part(part) => part.target.dirs(),
            Self::Linked(linked) => parent(&linked.path),
        }
    }

    /// The open file to sync, if the content is in a file.
    pub(super) fn to_sync(&self, dirs: Vec<PathBuf>) -> Option<ToSync> {
        let (path, file) = match self {
            Self::Database(_) => return None,
            Self::File(file) => (&file.path, Arc::clone(&file.file)),
            Self::Part(part) => (&part.file.path, Arc::clone(&part.file.file)),
            Self::Linked(linked) => (&linked.path, linked.opened().ok()?),
        };
        Some(ToSync { path: path.clone(), file, dirs })
    }
}

#[derive(Debug)]
pub(super) struct PartFile {
    pub(super) file: ContentFile,
    pub(super) target: Target,
}

impl FileState {
    pub(super) fn new(layout: PieceLayout, synced: Bitmap, store: FileStore, finished: bool) -> Self {
        let unsynced_dirs = store.dirs();
        Self {
            have: synced.clone(),
            synced,
            intended: Bitmap::empty(layout),
            expected: BTreeSet::new(),
            recording: false,
            unsynced: BTreeSet::new(),
            unsynced_bytes: 0,
            verified: Bitmap::empty(layout),
            store,
            allocated: finished,
            finished,
            unsynced_dirs,
            retired: false,
        }
    }

    /// Turns this into the state of a small file that was stored in a batch: complete, but not synced.
    pub(super) fn set_unsynced(&mut self, layout: PieceLayout) {
        self.have = Bitmap::full(layout);
        self.intended = Bitmap::full(layout);
        self.unsynced = layout.pieces().collect();
        self.unsynced_bytes = layout.size();
        self.allocated = true;
        self.finished = true;
    }

    /// Records that a piece is valid and stored, but not synced. Returns whether it was not stored before.
    pub(super) fn add_piece(&mut self, piece: PieceIndex, len: usize) -> bool {
        let new = self.have.insert(piece);
        if new {
            self.verified.insert(piece);
            self.unsynced.insert(piece);
            self.unsynced_bytes += len as u64;
        }
        new
    }

    /// Records that pieces are not stored.
    pub(super) fn remove_pieces(&mut self, pieces: &[PieceIndex]) {
        for piece in pieces {
            self.have.remove(*piece);
            self.synced.remove(*piece);
            self.verified.remove(*piece);
            self.unsynced.remove(piece);
        }
    }

    /// Returns the linked file if every piece of it was hashed or written since it was opened.
    pub(super) fn verified_link(&self) -> Option<Arc<LinkedFile>> {
        match &self.store {
            FileStore::Linked(linked) if self.verified.is_full() && !self.retired => Some(Arc::clone(linked)),
            _ => None,
        }
    }
}
