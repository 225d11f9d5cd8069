//! Files that were read for other peers a short time ago, held open.
//!
//! Without it every request would load the manifest of a file anew, open its content anew, and hash anew what was
//! hashed before. Bounded by count, since each may hold a descriptor, and by the memory of their piece hashes; and
//! by time, since the blocks of a file that the user deletes are not free before it is closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::file::LibraryFile;
use crate::machine;
use crate::model::id::FileId;

/// The most files.
const MAX_FILES: usize = 32;
/// The most piece hashes of all of them: 2 MiB. One file may have more.
const MAX_HASHES: usize = 64 * 1024;

/// How long a file is held that nobody asks for.
const UNUSED: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Held {
    file: Arc<LibraryFile>,
    used: Instant,
}

/// The files that were used last, the newest at the end.
#[derive(Debug, Default)]
pub(super) struct RecentFiles {
    files: Mutex<VecDeque<Held>>,
    first: Notify,
}

impl RecentFiles {
    /// Notes that the file was used just now. Those that were not used for longest go.
    pub(super) fn touch(&self, file: &Arc<LibraryFile>) {
        let used = Instant::now();
        let mut gone = Vec::new();
        let mut files = self.files.lock();
        if let Some(newest) = files.back_mut().filter(|newest| Arc::ptr_eq(&newest.file, file)) {
            newest.used = used;
            return;
        }
        if files.is_empty() {
            self.first.notify_one();
        }
        files.retain(|other| !Arc::ptr_eq(&other.file, file));
        files.push_back(Held { file: Arc::clone(file), used });
        let hashes = |held: &Held| held.file.manifest().hashes().len();
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
        let mut files = self.files.lock();
        let at = files.iter().position(|held| held.file.id() == *id);
        let gone = at.and_then(|at| files.remove(at));
        drop(files);
        drop(gone);
    }

    /// Lets go of all files.
    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut *self.files.lock());
        drop(gone);
    }

    /// Lets go of what nobody asks for, for as long as it is polled.
    pub(super) async fn let_go_of_the_unused(&self) {
        loop {
            let oldest = self.files.lock().front().map(|held| held.used);
            match oldest {
                None => self.first.notified().await,
                Some(used) => sleep_until(used + UNUSED).await,
            }
            let gone = self.unused();
            if !gone.is_empty() {
                let _closed = machine::spawn_blocking(move || drop(gone)).await;
            }
        }
    }

    /// Takes out what nobody asked for of late.
    fn unused(&self) -> Vec<Held> {
        let now = Instant::now();
        let mut files = self.files.lock();
        let unused = files.iter().take_while(|held| now >= held.used + UNUSED).count();
        files.drain(..unused).collect()
    }
}
