//! An open file of the library, shared by all readers and writers.
//!
//! A piece is *stored* from the moment its content is written: it can be read and is offered to other peers.
//! Before that the index records it as *intended*, until it is *synced*. After a crash, pieces that are
//! intended and not synced are hashed. So a kill of the process loses only writes in progress, and a power
//! cut only unsynced pieces.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::RwLock;

use super::entry::{LibraryEvent, Location};
use super::error::{LibraryError, Result};
use super::file_state::{FileState, FileStore};
use super::inner::LibraryInner;
use super::layout::{self, DIRTY, HAVE, LinkState, MAX_COPIES};
use super::linked::LinkedFile;
use super::task::{blocking, in_task};
use super::unsynced::{CheckpointPlan, Unsynced};
use crate::change::ChangeNotifier;
use enjambre_core::{Batch, Bitmap, Durability, FileId, Manifest, PieceIndex, PieceLayout};

/// An open file.
#[derive(Debug)]
pub struct LibraryFile {
    pub(super) inner: Arc<LibraryInner>,
    pub(super) manifest: Arc<Manifest>,
    /// Notifies about changes of the number of stored pieces.
    progress: ChangeNotifier,
    pub(super) state: Mutex<FileState>,
    /// Held shared while pieces are written, and exclusively while the file moves or is renamed to its final name.
    /// Acquired before the lock of the id.
    pub(super) gate: RwLock<()>,
}

impl LibraryFile {
    pub(super) fn new(inner: Arc<LibraryInner>, manifest: Arc<Manifest>, state: FileState) -> Arc<Self> {
        let (progress, state, gate) = (ChangeNotifier::default(), Mutex::new(state), RwLock::default());
        Arc::new(Self { inner, manifest, progress, state, gate })
    }

    /// The id of the file.
    pub fn id(&self) -> FileId {
        self.manifest.id()
    }

    /// The manifest of the file.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The layout of the pieces.
    pub fn layout(&self) -> PieceLayout {
        self.manifest.layout()
    }

    /// The location of the content.
    pub fn location(&self) -> Location {
        match &self.state.lock().store {
            FileStore::Database(_) => Location::Database,
            FileStore::File(_) => Location::Files,
            FileStore::Part(part) => Location::Linked { path: part.target.path() },
            FileStore::Linked(linked) => Location::Linked { path: linked.path.clone() },
        }
    }

    /// Whether the content is in a database, where few large writes cost much less than many small ones.
    pub fn is_in_database(&self) -> bool {
        matches!(self.state.lock().store, FileStore::Database(_))
    }

    /// The stored pieces.
    pub fn have(&self) -> Bitmap {
        self.state.lock().have.clone()
    }

    /// Whether the piece is stored.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.state.lock().have.contains(piece)
    }

    /// The number of stored pieces.
    pub fn have_count(&self) -> u32 {
        self.state.lock().have.count()
    }

    /// Whether all pieces are stored. The writer of the last piece still has to call [`Self::finish`].
    pub fn is_complete(&self) -> bool {
        self.state.lock().have.is_full()
    }

    /// Whether all pieces are stored and a file of the user has its final name.
    pub fn is_finished(&self) -> bool {
        self.state.lock().finished
    }

    /// Waits until the number of stored pieces differs from `known`.
    pub(crate) async fn has_other_than(&self, known: u32) {
        self.progress.wait_until(|| self.have_count() != known).await;
    }

    /// Waits until the piece is stored, or the open file is no longer in use.
    pub(crate) async fn stored(&self, piece: PieceIndex) {
        self.progress.wait_until(|| self.has(piece) || self.is_retired()).await;
    }

    /// Returns the linked file if it does not have the expected fingerprint.
    pub(super) async fn changed_link(&self) -> Result<Option<Arc<LinkedFile>>> {
        let FileStore::Linked(linked) = self.state.lock().store.clone() else { return Ok(None) };
        blocking(move || Ok(linked.check().is_err().then_some(linked))).await
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.state.lock().retired
    }

    pub(super) fn check_usable(&self) -> Result<()> {
        self.inner.check_open()?;
        if self.is_retired() { Err(LibraryError::not_found(self.id())) } else { Ok(()) }
    }

    /// Reads a stored piece.
    ///
    /// # Errors
    /// [`LibraryError::MissingPiece`] if the piece is not stored, [`LibraryError::Changed`] if a linked file
    /// has changed, [`LibraryError::Damaged`] if the stored content is invalid.
    pub async fn read_piece(self: &Arc<Self>, piece: PieceIndex) -> Result<Bytes> {
        // The content may move, and a linked file may be at another path.
        for attempt in 0..=MAX_COPIES {
            match self.read_once(piece).await {
                Ok(Some(content)) => return Ok(content),
                Ok(None) => {}
                // Withdrawn since the first attempt.
                Err(LibraryError::NotFound(_)) if attempt > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Err(self.changed())
    }

    /// Reads a stored piece, or returns `None` if the content is at another place now.
    async fn read_once(self: &Arc<Self>, piece: PieceIndex) -> Result<Option<Bytes>> {
        self.check_usable()?;
        let (store, verified) = {
            let state = self.state.lock();
            if !state.have.contains(piece) {
                return Err(LibraryError::MissingPiece { id: self.id(), piece: piece.get() });
            }
            (state.store.clone(), state.verified.contains(piece))
        };
        let linked = match &store {
            FileStore::Linked(linked) => Some(Arc::clone(linked)),
            _ => None,
        };
        // Before the read: a file that changed a moment ago may change again without a change of its
        // fingerprint.
        let settled = linked.as_ref().is_none_or(|linked| linked.is_settled());
        let read = self.read_from(store, piece, verified).await;
        match (read, linked) {
            (Ok(Some(content)), linked) => {
                if !verified && settled {
                    self.set_verified(piece, linked.as_deref());
                }
                Ok(Some(content))
            }
            (read @ (Ok(None) | Err(LibraryError::Changed { .. })), Some(linked)) => {
                match self.relink(&linked, read.is_ok()).await? {
                    true => Ok(None),
                    false => Err(self.changed()),
                }
            }
            (Ok(None), None) => {
                let _gate = self.gate.read().await;
                // The content may have moved during the read.
                if !matches!(self.check_piece(piece).await, Ok(false)) {
                    return Ok(None);
                }
                self.drop_pieces(&[piece]).await?;
                Err(LibraryError::Damaged { id: self.id(), piece: piece.get() })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Records that a piece was hashed and is valid. Once all pieces of a linked file are, this is known for
    /// as long as its fingerprint is unchanged, also after it is opened again.
    fn set_verified(&self, piece: PieceIndex, read_from: Option<&LinkedFile>) {
        {
            let mut state = self.state.lock();
            if let FileStore::Linked(current) = &state.store
                && read_from.is_none_or(|linked| !std::ptr::eq(linked, &raw const **current))
            {
                // Another version by now.
                return;
            }
            state.verified.insert(piece);
        }
        self.report_verified_link();
    }

    fn report_verified_link(&self) {
        let verified = self.state.lock().verified_link();
        if let Some(linked) = verified {
            self.inner.set_verified(&self.id(), &linked);
        }
    }

    pub(super) fn changed(&self) -> LibraryError {
        let path = match self.location() {
            Location::Linked { path } => path,
            _ => PathBuf::new(),
        };
        LibraryError::Changed { id: self.id(), path }
    }

    /// Reads a piece and hashes it unless it is `verified`: disks fail, and other programs may write to
    /// files. Returns `None` if the piece is missing or invalid.
    pub(super) async fn read_from(
        &self,
        store: FileStore,
        piece: PieceIndex,
        verified: bool,
    ) -> Result<Option<Bytes>> {
        let from_database = match &store {
            FileStore::Database(content) => content.read(&self.id(), self.layout(), piece).await?,
            _ => None,
        };
        if verified && matches!(store, FileStore::Database(_)) {
            return Ok(from_database);
        }
        let (manifest, inner) = (Arc::clone(&self.manifest), Arc::clone(&self.inner));
        blocking(move || {
            let (layout, buffers) = (manifest.layout(), &inner.buffers);
            let content = match &store {
                FileStore::Database(_) => from_database,
                FileStore::File(file) => file.read(layout, piece, buffers)?,
                FileStore::Part(part) => part.file.read(layout, piece, buffers)?,
                FileStore::Linked(linked) => Some(linked.read(layout, piece, buffers)?),
            };
            Ok(content.filter(|content| verified || manifest.piece_is(piece, content)))
        })
        .await
    }

    /// Reads and hashes a piece, stored or not. Returns whether it is valid.
    pub(super) async fn check_piece(&self, piece: PieceIndex) -> Result<bool> {
        let store = self.state.lock().store.clone();
        Ok(self.read_from(store, piece, false).await?.is_some())
    }

    /// Limits the intended pieces to the unsynced ones. The next checkpoint stores that.
    pub(super) fn reset_intended(&self) {
        let mut state = self.state.lock();
        state.intended = Bitmap::empty(self.layout());
        for piece in state.unsynced.clone() {
            state.intended.insert(piece);
        }
    }

    /// Updates the number of stored pieces in the index and wakes the tasks that wait for progress.
    pub(super) fn update_progress(&self) {
        if let Some(slot) = self.inner.state.lock().slots.get_mut(&self.id()) {
            // Counted under the lock of the index, so that a concurrent write cannot set an older count.
            let state = self.state.lock();
            if !state.retired {
                slot.have = state.have.count();
            }
        }
        self.progress.notify();
    }

    /// Makes the pieces written so far durable.
    pub async fn checkpoint(self: &Arc<Self>) -> Result<()> {
        self.inner.checkpoint(Some(self.id())).await
    }

    /// Completes a file whose pieces are all stored: renames a file of the user to its final name. With
    /// `durable` the result is durable on return. Otherwise it survives a crash of the process, and soon
    /// after also a power cut.
    ///
    /// # Errors
    /// [`LibraryError::Incomplete`] if pieces are missing, [`LibraryError::Exists`] if the destination exists
    /// by now.
    pub async fn finish(self: &Arc<Self>, durable: bool) -> Result<()> {
        self.check_usable()?;
        in_task(Arc::clone(self).finish_now()).await?;
        if durable { self.checkpoint().await } else { self.inner.keep_up().await }
    }

    async fn finish_now(self: Arc<Self>) -> Result<()> {
        let _gate = self.gate.write().await;
        self.check_usable()?;
        let store = {
            let state = self.state.lock();
            if !state.have.is_full() {
                let (have, pieces) = (state.have.count(), self.layout().count());
                return Err(LibraryError::Incomplete { id: self.id(), have, pieces });
            }
            if state.finished {
                return Ok(());
            }
            state.store.clone()
        };
        let id = self.id();
        let _guard = self.inner.lock(&id).await;
        self.check_usable()?;
        let linked = match store {
            FileStore::Part(part) => {
                let renamed = Arc::clone(&part);
                let fingerprint = blocking(move || renamed.target.finish(&renamed.file, false)).await?;
                let file = Arc::clone(&part.file.file);
                let linked = LinkedFile::new(id, part.target.path(), fingerprint, Some(file));
                let state = LinkState::Whole(fingerprint);
                Some((part.target.place(state), linked))
            }
            _ => None,
        };
        if let Some(slot) = self.inner.state.lock().slots.get_mut(&id) {
            // The checkpoint stores the record. After an earlier crash the renamed file is found by its
            // inode.
            slot.stored = false;
            if let Some((place, _)) = &linked {
                slot.record.place = place.clone();
            }
        }
        {
            let mut state = self.state.lock();
            state.finished = true;
            if let Some((_, linked)) = linked {
                state.unsynced_dirs = state.store.dirs();
                state.store = FileStore::Linked(Arc::new(linked));
            }
        }
        self.report_verified_link();
        self.inner.mark_dirty(Arc::clone(&self) as _, 0);
        self.inner.notify(LibraryEvent::Completed(id));
        Ok(())
    }

    /// Drops invalid pieces, so that they are downloaded again.
    pub(super) async fn drop_pieces(&self, pieces: &[PieceIndex]) -> Result<()> {
        let (id, layout) = (self.id(), self.layout());
        let _guard = self.inner.lock(&id).await;
        let mut batch = Batch::new();
        {
            let mut state = self.inner.state.lock();
            if let Some(slot) = state.slots.get_mut(&id).filter(|slot| slot.record.complete) {
                slot.record.complete = false;
                slot.stored = false;
            }
            state.put_record(&mut batch, &id);
        }
        {
            let mut state = self.state.lock();
            if state.retired {
                return Ok(());
            }
            state.remove_pieces(pieces);
            state.finished = false;
            for page in 0..layout::bitmap_pages(layout) {
                layout::put_bitmap_page(&mut batch, HAVE, &id, &state.synced, page);
            }
        }
        self.update_progress();
        tracing::warn!(%id, pieces = pieces.len(), "damaged pieces dropped");
        self.inner.notify(LibraryEvent::Added(id));
        self.inner.notify(LibraryEvent::Damaged(id));
        self.inner.commit_in_parts(batch, Durability::Durable).await?;
        self.inner.state.lock().set_stored(&id);
        Ok(())
    }

    /// Detaches the file from the library. All later calls on it fail.
    pub(super) fn retire(&self) {
        let unsynced = {
            let mut state = self.state.lock();
            state.retired = true;
            state.have = Bitmap::empty(self.layout());
            std::mem::take(&mut state.unsynced_bytes)
        };
        self.progress.notify();
        self.inner.unsynced_bytes.fetch_sub(unsynced, Ordering::AcqRel);
        self.inner.dirty.lock().remove(&self.id());
        self.inner.cache.remove(&self.id());
    }
}

impl Unsynced for LibraryFile {
    fn id(&self) -> FileId {
        self.manifest.id()
    }

    fn plan_checkpoint(&self) -> CheckpointPlan {
        let state = self.state.lock();
        CheckpointPlan {
            pieces: state.unsynced.iter().copied().collect(),
            bytes: state.unsynced_bytes,
            finished: state.finished,
            in_database: matches!(state.store, FileStore::Database(_)) && !state.unsynced.is_empty(),
            to_sync: state.store.to_sync(state.unsynced_dirs.clone()),
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
            if committed && plan.finished == state.finished {
                state.unsynced_dirs.clear();
            }
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
