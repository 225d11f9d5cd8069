//! The part of a checkpoint that concerns small files.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::library::content::ContentStore;
use crate::library::content_files;
use crate::library::error::{LibraryError, Result};
use crate::library::inner::LibraryInner;
use crate::library::layout::{self, ContentPlace, DIRTY, HAVE};
use crate::library::task::blocking;
use crate::library::unsynced::SmallFilesPlan;
use enjambre_core::Batch;

impl LibraryInner {
    pub(in crate::library) fn plan_small_files(&self) -> SmallFilesPlan {
        let state = self.state.lock();
        let mut plan = SmallFilesPlan::default();
        for (id, number) in state.unsynced_small.numbers() {
            let Some(slot) = state.slots.get(&id) else { continue };
            plan.in_database |= slot.record.place == ContentPlace::Database;
            let dir = match (&slot.record.place, &self.content) {
                (ContentPlace::Files, ContentStore::Files(dir)) => Some(dir.as_path()),
                (place, _) => place.root_and_rel().map(|(root, _)| root),
            };
            if let Some(dir) = dir.filter(|dir| !plan.dirs.contains(*dir)) {
                plan.dirs.insert(dir.to_owned());
            }
            plan.files.push((id, number));
        }
        plan
    }

    pub(in crate::library) async fn sync_small_files(&self, plan: &SmallFilesPlan) -> Result<()> {
        if plan.dirs.is_empty() {
            return Ok(());
        }
        let dirs = plan.dirs.clone();
        blocking(move || {
            let mut devices = HashSet::new();
            for dir in &dirs {
                match std::fs::metadata(dir) {
                    Ok(metadata) if devices.insert(metadata.dev()) => content_files::sync_file_system(dir)?,
                    Ok(_) => {}
                    // The directory was deleted together with its files.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(LibraryError::io("sync", dir, error)),
                }
            }
            Ok(())
        })
        .await
    }

    /// Adds the records of the small files as complete. The caller has synced the files and holds their
    /// locks.
    pub(in crate::library) fn put_small_files(&self, plan: &SmallFilesPlan, batch: &mut Batch) {
        let mut state = self.state.lock();
        let state = &mut *state;
        // Without the files that were removed or added again meanwhile.
        for (id, number) in &plan.files {
            if state.unsynced_small.number(id) != Some(*number) {
                continue;
            }
            if let Some(slot) = state.slots.get_mut(id) {
                slot.record.complete = true;
                slot.stored = false;
            }
            state.put_record(batch, id);
            // After a crash during a download the file may have either bitmap.
            batch.delete(HAVE, layout::page_key(id, 0));
            batch.delete(DIRTY, layout::page_key(id, 0));
        }
    }

    /// Records whether the batch was committed.
    pub(in crate::library) fn end_small_files(&self, plan: &SmallFilesPlan, committed: bool) {
        let mut state = self.state.lock();
        for (id, number) in &plan.files {
            if state.unsynced_small.number(id) != Some(*number) {
                continue;
            }
            if committed {
                state.unsynced_small.remove(id);
            }
            if let Some(slot) = state.slots.get_mut(id) {
                slot.stored = committed;
                slot.record.complete = committed;
            }
        }
    }
}
