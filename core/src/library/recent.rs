//! Files that were read for other peers a short time ago, held open.
//!
//! Without it every request would load the manifest of a file anew, open its content anew, and hash anew what was
//! hashed before. Bounded by count, since each may hold a descriptor, and by the memory of their piece hashes.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::file::LibraryFile;
use crate::model::id::FileId;

/// The most files.
const MAX_FILES: usize = 32;
/// The most piece hashes of all of them: 2 MiB. One file may have more.
const MAX_HASHES: usize = 64 * 1024;

/// The files that were used last, the newest at the end.
#[derive(Debug, Default)]
pub(super) struct RecentFiles(Mutex<VecDeque<Arc<LibraryFile>>>);

impl RecentFiles {
    /// Notes that the file was used just now. Those that were not used for longest go.
    pub(super) fn touch(&self, file: &Arc<LibraryFile>) {
        let mut gone = Vec::new();
        let mut files = self.0.lock();
        if files.back().is_some_and(|newest| Arc::ptr_eq(newest, file)) {
            return;
        }
        files.retain(|other| !Arc::ptr_eq(other, file));
        files.push_back(Arc::clone(file));
        let hashes = |file: &Arc<LibraryFile>| file.manifest().hashes().len();
        let mut total: usize = files.iter().map(hashes).sum();
        while files.len() > 1 && (files.len() > MAX_FILES || total > MAX_HASHES) {
            let Some(oldest) = files.pop_front() else { break };
            total -= hashes(&oldest);
            gone.push(oldest);
        }
        // Closing a file may take long.
        drop(files);
        drop(gone);
    }

    /// Lets go of a file.
    pub(super) fn forget(&self, id: &FileId) {
        let mut files = self.0.lock();
        let at = files.iter().position(|file| file.id() == *id);
        let gone = at.and_then(|at| files.remove(at));
        drop(files);
        drop(gone);
    }

    /// Lets go of all files.
    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut *self.0.lock());
        drop(gone);
    }
}
