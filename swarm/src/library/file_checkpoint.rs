//! The part of a checkpoint that concerns one open file.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::content_files::{ContentFile, ToSync};
use super::file::LibraryFile;
use super::file_state::FileStore;
use super::layout::{self, DIRTY, HAVE};
use super::unsynced::{CheckpointPlan, Unsynced};
use enjambre_core::{Batch, FileId};

impl Unsynced for LibraryFile {
    fn id(&self) -> FileId {
        self.manifest.id()
    }

    fn plan_checkpoint(&self) -> CheckpointPlan {
        let state = self.state.lock();
        let renamed = !state.name_synced;
        let handle = |file: &ContentFile| ToSync {
            path: file.path().to_owned(),
            file: Arc::clone(file.file()),
            renamed,
        };
        let to_sync = match &state.store {
            FileStore::Database(_) => None,
            FileStore::File(file) => Some(handle(file)),
            FileStore::Part(part) => Some(handle(&part.file)),
            FileStore::Linked(linked) => {
                linked.opened().ok().map(|file| ToSync { path: linked.path().to_owned(), file, renamed })
            }
        };
        CheckpointPlan {
            pieces: state.unsynced.iter().copied().collect(),
            bytes: state.unsynced_bytes,
            finished: state.finished,
            in_database: matches!(state.store, FileStore::Database(_)) && !state.unsynced.is_empty(),
            to_sync,
        }
    }

    fn put_checkpoint(&self, plan: &CheckpointPlan, batch: &mut Batch) {
        let (id, layout) = (self.manifest.id(), self.layout());
        let mut bitmaps = Batch::new();
        let complete = {
            let mut state = self.state.lock();
            if state.retired {
                return;
            }
            let mut pages = BTreeSet::new();
            for piece in &plan.pieces {
                if state.have.contains(*piece) {
                    state.synced.insert(*piece);
                }
                state.intended.remove(*piece);
                pages.insert(layout::page_of(*piece));
            }
            for page in pages {
                layout::put_bitmap_page(&mut bitmaps, HAVE, &id, &state.synced, page);
                layout::put_bitmap_page(&mut bitmaps, DIRTY, &id, &state.intended, page);
            }
            plan.finished && state.finished && state.synced.is_full()
        };
        let mut state = self.inner.state.lock();
        if complete
            && let Some(slot) = state.slots.get_mut(&id)
            && !slot.record.complete
        {
            slot.record.complete = true;
            slot.stored = false;
            bitmaps = Batch::new();
            layout::delete_bitmaps(&mut bitmaps, &id, layout);
        }
        state.put_record(batch, &id);
        batch.writes.append(&mut bitmaps.writes);
    }

    fn end_checkpoint(&self, plan: &CheckpointPlan, committed: bool) -> (u64, bool) {
        let synced = {
            let mut state = self.state.lock();
            if state.retired {
                return (0, true);
            }
            for piece in &plan.pieces {
                if committed {
                    state.unsynced.remove(piece);
                } else {
                    state.synced.remove(*piece);
                    state.intended.insert(*piece);
                }
            }
            // Unless the file was renamed since the plan was made.
            state.name_synced |= committed && plan.finished == state.finished;
            let synced = if committed { plan.bytes.min(state.unsynced_bytes) } else { 0 };
            state.unsynced_bytes -= synced;
            synced
        };
        if let Some(slot) = self.inner.state.lock().slots.get_mut(&self.manifest.id()) {
            slot.stored = committed;
            slot.record.complete &= committed;
        }
        (synced, self.is_clean())
    }

    fn is_clean(&self) -> bool {
        let finished = {
            let state = self.state.lock();
            if state.retired {
                return true;
            }
            if !state.unsynced.is_empty() {
                return false;
            }
            state.finished
        };
        let state = self.inner.state.lock();
        let slot = state.slots.get(&self.manifest.id());
        slot.is_none_or(|slot| slot.stored && (slot.record.complete || !finished))
    }
}
