//! A cache that keeps recently read files open.
//!
//! Without it every request of another peer would load the manifest, open the content and hash its pieces
//! again. The cache is bounded by the number of files, since each may hold a descriptor, by the memory of
//! their piece hashes, and by time, since the blocks of a file that the user deletes are free only after it
//! is closed.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use enjambre_core::FileId;
use enjambre_core::runtime;

const MAX_FILES: usize = 32;
/// The largest number of piece hashes of all files together, 2 MiB. A single file may have more.
const MAX_HASHES: usize = 64 * 1024;
/// The time after which an unused file is closed.
const MAX_IDLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Cached {
    id: FileId,
    hashes: usize,
    /// Held only to keep the file open.
    file: Arc<dyn Any + Send + Sync>,
    used: Instant,
}

#[derive(Debug, Default)]
pub(super) struct OpenFileCache {
    files: Mutex<VecDeque<Cached>>,
    filled: Notify,
}

impl OpenFileCache {
    /// Inserts a file with this number of piece hashes, or marks it as used now. Evicts the least recently
    /// used files.
    pub(super) fn touch(&self, id: FileId, hashes: usize, file: Arc<dyn Any + Send + Sync>) {
        let used = Instant::now();
        let mut evicted = Vec::new();
        let mut files = self.files.lock();
        if let Some(newest) = files.back_mut().filter(|newest| Arc::ptr_eq(&newest.file, &file)) {
            newest.used = used;
            return;
        }
        if files.is_empty() {
            self.filled.notify_one();
        }
        files.retain(|other| !Arc::ptr_eq(&other.file, &file));
        files.push_back(Cached { id, hashes, file, used });
        let mut total: usize = files.iter().map(|cached| cached.hashes).sum();
        while files.len() > 1 && (files.len() > MAX_FILES || total > MAX_HASHES) {
            let Some(oldest) = files.pop_front() else { break };
            total -= oldest.hashes;
            evicted.push(oldest);
        }
        // Closing a file may take long, so the lock is released first.
        drop(files);
        drop(evicted);
    }

    pub(super) fn remove(&self, id: &FileId) {
        let mut files = self.files.lock();
        let at = files.iter().position(|cached| cached.id == *id);
        let removed = at.and_then(|at| files.remove(at));
        drop(files);
        drop(removed);
    }

    pub(super) fn clear(&self) {
        let removed = std::mem::take(&mut *self.files.lock());
        drop(removed);
    }

    /// Closes unused files. Never returns.
    pub(super) async fn close_idle_files(&self) {
        loop {
            let oldest = self.files.lock().front().map(|cached| cached.used);
            match oldest {
                None => self.filled.notified().await,
                Some(used) => sleep_until(used + MAX_IDLE).await,
            }
            let idle = self.take_idle();
            if !idle.is_empty() {
                let _closed = runtime::spawn_blocking(move || drop(idle)).await;
            }
        }
    }

    fn take_idle(&self) -> Vec<Cached> {
        let now = Instant::now();
        let mut files = self.files.lock();
        let idle = files.iter().take_while(|cached| now >= cached.used + MAX_IDLE).count();
        files.drain(..idle).collect()
    }
}
