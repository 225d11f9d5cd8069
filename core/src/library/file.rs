//! One file of the library, shared by everybody who reads or fills it.
//!
//! A piece is *here* from the moment its content is written: it can be read and is offered on. It is *intended* from
//! before that until it is *synced*; what is intended in the index and not synced is hashed after a crash. So
//! a kill of the process loses only the writes under way, and a power cut what was not synced.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::RwLock;

use super::content::DatabaseContent;
use super::content_files::ContentFile;
use super::entry::{LibraryEvent, Location};
use super::error::LibraryError;
use super::layout::{self, DIRTY, HAVE, LinkState, Place};
use super::linked::LinkedFile;
use super::output::Target;
use super::shared::Shared;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::manifest::Manifest;
use crate::model::record::FileKind;
use crate::news::News;
use crate::storage::value::{Batch, Durability};

/// An open file.
#[derive(Debug)]
pub struct LibraryFile {
    pub(super) shared: Arc<Shared>,
    pub(super) manifest: Arc<Manifest>,
    kind: FileKind,
    /// Another number of pieces is here.
    progress: News,
    pub(super) bits: Mutex<Bits>,
    /// Held shared while pieces are written, alone while the file gets its name.
    pub(super) gate: RwLock<()>,
}

/// What is where of a file.
#[derive(Debug)]
pub(super) struct Bits {
    pub(super) have: Bitmap,
    pub(super) synced: Bitmap,
    pub(super) intended: Bitmap,
    /// Pieces that were asked for: the next intent that is noted is also theirs.
    pub(super) expected: BTreeSet<PieceIndex>,
    /// That they may be written is being noted.
    pub(super) intending: bool,
    pub(super) unsynced: BTreeSet<PieceIndex>,
    pub(super) unsynced_bytes: u64,
    /// Pieces that were written or hashed since it was opened.
    pub(super) verified: Bitmap,
    pub(super) store: Store,
    pub(super) allocated: bool,
    pub(super) finished: bool,
    /// The file's name in its folder is synced too.
    name_synced: bool,
    pub(super) removed: bool,
}

/// Where the content is, opened.
#[derive(Debug, Clone)]
pub(super) enum Store {
    Database(DatabaseContent),
    File(Arc<ContentFile>),
    Part(Arc<PartFile>),
    Linked(Arc<LinkedFile>),
}

/// A user's file that is being filled.
#[derive(Debug)]
pub(super) struct PartFile {
    pub(super) file: ContentFile,
    pub(super) target: Target,
}

/// What a checkpoint of a file makes durable.
#[derive(Debug)]
pub(super) struct Plan {
    pieces: Vec<PieceIndex>,
    bytes: u64,
    finished: bool,
    pub(super) in_database: bool,
    pub(super) to_sync: Option<SyncHandle>,
}

#[derive(Debug)]
pub(super) struct SyncHandle {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) renamed: bool,
}

impl Bits {
    pub(super) fn new(layout: PieceLayout, synced: Bitmap, store: Store, finished: bool) -> Self {
        Self {
            have: synced.clone(),
            synced,
            intended: Bitmap::empty(layout),
            expected: BTreeSet::new(),
            intending: false,
            unsynced: BTreeSet::new(),
            unsynced_bytes: 0,
            verified: Bitmap::empty(layout),
            store,
            allocated: finished,
            finished,
            name_synced: false,
            removed: false,
        }
    }
}

impl Bits {
    /// Whether it is a whole file of the user of which every piece was hashed or written.
    fn is_proven(&self) -> bool {
        matches!(self.store, Store::Linked(_)) && self.verified.is_full() && !self.removed
    }
}

impl LibraryFile {
    pub(super) fn new(shared: Arc<Shared>, manifest: Arc<Manifest>, kind: FileKind, bits: Bits) -> Arc<Self> {
        let (bits, gate) = (Mutex::new(bits), RwLock::new(()));
        Arc::new(Self { shared, manifest, kind, progress: News::default(), bits, gate })
    }

    /// Its id.
    pub fn id(&self) -> FileId {
        self.manifest.id()
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Its pieces.
    pub fn layout(&self) -> PieceLayout {
        self.manifest.layout()
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Where its content is.
    pub fn location(&self) -> Location {
        match &self.bits.lock().store {
            Store::Database(_) => Location::Database,
            Store::File(_) => Location::Files,
            Store::Part(part) => Location::Linked { path: part.target.path() },
            Store::Linked(linked) => Location::Linked { path: linked.path().to_owned() },
        }
    }

    /// Whether its content goes into a database, where few large writes cost much less than many small ones.
    pub fn is_in_database(&self) -> bool {
        matches!(self.bits.lock().store, Store::Database(_))
    }

    /// The pieces that are here.
    pub fn have(&self) -> Bitmap {
        self.bits.lock().have.clone()
    }

    /// Whether the piece is here.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.bits.lock().have.contains(piece)
    }

    /// How many pieces are here.
    pub fn have_count(&self) -> u32 {
        self.bits.lock().have.count()
    }

    /// Whether every piece is here. [`Self::finish`] is still to be called by whoever fills it.
    pub fn is_complete(&self) -> bool {
        self.bits.lock().have.is_full()
    }

    /// Whether nothing is left to do: every piece is here and a file of the user has its name.
    pub fn is_finished(&self) -> bool {
        self.bits.lock().finished
    }

    /// Returns when another number of pieces is here than this.
    pub(crate) async fn has_other_than(&self, known: u32) {
        self.progress.until(|| self.have_count() != known).await;
    }

    /// Whether the file of the user, where it is one, still looks as it did.
    pub(super) async fn is_still_there(&self) -> Result<bool, LibraryError> {
        let Store::Linked(linked) = self.bits.lock().store.clone() else { return Ok(true) };
        layout::blocking(move || Ok(linked.check().is_ok())).await
    }

    pub(super) fn is_removed(&self) -> bool {
        self.bits.lock().removed
    }

    pub(super) fn check_usable(&self) -> Result<(), LibraryError> {
        self.shared.check_open()?;
        if self.bits.lock().removed { Err(LibraryError::not_found(self.id())) } else { Ok(()) }
    }

    /// Reads a piece that is here.
    ///
    /// # Errors
    /// [`LibraryError::MissingPiece`] where it is not here, [`LibraryError::Changed`] where a linked file is another
    /// one by now, [`LibraryError::Damaged`] where what was kept is wrong.
    pub async fn read_piece(self: &Arc<Self>, piece: PieceIndex) -> Result<Bytes, LibraryError> {
        self.check_usable()?;
        let (store, verified) = {
            let bits = self.bits.lock();
            if !bits.have.contains(piece) {
                return Err(LibraryError::MissingPiece { id: self.id(), piece: piece.get() });
            }
            (bits.store.clone(), bits.verified.contains(piece))
        };
        let linked = matches!(store, Store::Linked(_));
        // Before it is read: what was changed a moment ago may be changed once more and look the same.
        let settled = match &store {
            Store::Linked(linked) => linked.is_settled(),
            _ => true,
        };
        let read = self.read_from(store, piece, verified).await;
        match read {
            Ok(Some(content)) => {
                if !verified && settled {
                    self.note_verified(piece);
                }
                Ok(content)
            }
            Ok(None) if linked => {
                self.withdraw().await?;
                Err(self.changed())
            }
            Ok(None) => {
                self.drop_pieces(&[piece]).await?;
                Err(LibraryError::Damaged { id: self.id(), piece: piece.get() })
            }
            Err(error @ LibraryError::Changed { .. }) => {
                self.withdraw().await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that a piece was hashed and is right. Of a whole file of the user that is known then also to who opens
    /// it later: it is proven for as long as it looks the same.
    fn note_verified(&self, piece: PieceIndex) {
        let proven = {
            let mut bits = self.bits.lock();
            bits.verified.insert(piece);
            bits.is_proven()
        };
        if proven {
            self.shared.prove(self);
        }
    }

    pub(super) fn changed(&self) -> LibraryError {
        let path = match self.location() {
            Location::Linked { path } => path,
            _ => PathBuf::new(),
        };
        LibraryError::Changed { id: self.id(), path }
    }

    /// Reads a piece. Disks rot and others can write to files, so what was not hashed since it was opened is hashed now.
    /// `None` where it is missing, or not what it should be.
    async fn read_from(
        &self,
        store: Store,
        piece: PieceIndex,
        verified: bool,
    ) -> Result<Option<Bytes>, LibraryError> {
        let from_database = match &store {
            Store::Database(content) => content.read(&self.id(), self.layout(), piece).await?,
            _ => None,
        };
        if verified && matches!(store, Store::Database(_)) {
            return Ok(from_database);
        }
        let (manifest, shared) = (Arc::clone(&self.manifest), Arc::clone(&self.shared));
        layout::blocking(move || {
            let (layout, buffers) = (manifest.layout(), &shared.buffers);
            let content = match &store {
                Store::Database(_) => from_database,
                Store::File(file) => file.read(layout, piece, buffers)?,
                Store::Part(part) => part.file.read(layout, piece, buffers)?,
                Store::Linked(linked) => Some(linked.read(layout, piece, buffers)?),
            };
            Ok(content.filter(|content| verified || manifest.piece_is(piece, content)))
        })
        .await
    }

    /// Reads a piece and hashes it, whatever is claimed of it. `false` where it is missing or wrong.
    pub(super) async fn check_piece(&self, piece: PieceIndex) -> Result<bool, LibraryError> {
        let store = self.bits.lock().store.clone();
        Ok(self.read_from(store, piece, false).await?.is_some())
    }

    /// Pieces that were intended and are not here are not there: the next checkpoint says so.
    pub(super) fn forget_intents(&self) {
        let mut bits = self.bits.lock();
        bits.intended = Bitmap::empty(self.layout());
        for piece in bits.unsynced.clone() {
            bits.intended.insert(piece);
        }
    }

    pub(super) fn set_progress(&self, count: u32) {
        if let Some(slot) = self.shared.state.lock().slots.get_mut(&self.id()) {
            slot.have = count;
        }
        self.progress.tell();
    }

    /// Makes what was written so far durable.
    pub async fn checkpoint(self: &Arc<Self>) -> Result<(), LibraryError> {
        self.shared.checkpoint(Some(self.id())).await
    }

    /// Completes a file of which every piece is here: a file of the user gets its name. With `durable` the file
    /// survives a power cut on return; else soon after, and until then a crash of the process.
    ///
    /// # Errors
    /// [`LibraryError::Incomplete`], or [`LibraryError::Exists`] where something came to the path meanwhile.
    pub async fn finish(self: &Arc<Self>, durable: bool) -> Result<(), LibraryError> {
        self.check_usable()?;
        let file = Arc::clone(self);
        layout::finished(tokio::spawn(async move { file.finish_now().await })).await?;
        if durable { self.checkpoint().await } else { self.shared.keep_up().await }
    }

    async fn finish_now(self: Arc<Self>) -> Result<(), LibraryError> {
        let _gate = self.gate.write().await;
        self.check_usable()?;
        let store = {
            let bits = self.bits.lock();
            if !bits.have.is_full() {
                let (have, pieces) = (bits.have.count(), self.layout().count());
                return Err(LibraryError::Incomplete { id: self.id(), have, pieces });
            }
            if bits.finished {
                return Ok(());
            }
            bits.store.clone()
        };
        let id = self.id();
        let _guard = self.shared.lock(&id).await;
        self.check_usable()?;
        let whole = match store {
            Store::Part(part) => {
                let renamed = Arc::clone(&part);
                let mark = layout::blocking(move || renamed.target.finish(&renamed.file)).await?;
                let file = Arc::clone(part.file.file());
                let linked = LinkedFile::new(id, part.target.path(), mark, Some(file));
                let place = Place::linked(part.target.root(), part.target.rel(), LinkState::Whole(mark));
                Some((place, linked))
            }
            _ => None,
        };
        {
            let mut state = self.shared.state.lock();
            if let Some(slot) = state.slots.get_mut(&id) {
                // The checkpoint stores it; a crash before that finds the renamed file by its inode.
                slot.stored = false;
                if let Some((place, _)) = &whole {
                    slot.record.place = place.clone();
                }
            }
        }
        {
            let mut bits = self.bits.lock();
            bits.finished = true;
            if let Some((_, linked)) = whole {
                bits.name_synced = false;
                bits.store = Store::Linked(Arc::new(linked));
            }
        }
        if self.bits.lock().is_proven() {
            self.shared.prove(&self);
        }
        self.shared.mark_dirty(&self, 0);
        self.shared.tell(LibraryEvent::Completed(id));
        Ok(())
    }

    pub(super) fn plan_checkpoint(&self) -> Plan {
        let bits = self.bits.lock();
        let renamed = !bits.name_synced;
        let handle = |file: &ContentFile| SyncHandle {
            path: file.path().to_owned(),
            file: Arc::clone(file.file()),
            renamed,
        };
        let to_sync = match &bits.store {
            Store::Database(_) => None,
            Store::File(file) => Some(handle(file)),
            Store::Part(part) => Some(handle(&part.file)),
            Store::Linked(linked) => {
                linked.opened().ok().map(|file| SyncHandle { path: linked.path().to_owned(), file, renamed })
            }
        };
        Plan {
            pieces: bits.unsynced.iter().copied().collect(),
            bytes: bits.unsynced_bytes,
            finished: bits.finished,
            in_database: matches!(bits.store, Store::Database(_)) && !bits.unsynced.is_empty(),
            to_sync,
        }
    }

    /// Adds what a checkpoint writes to the index. The caller has synced the content and holds the lock of the id.
    pub(super) fn put_checkpoint(&self, plan: &Plan, batch: &mut Batch) {
        let (id, layout) = (self.id(), self.layout());
        let mut bitmaps = Batch::new();
        let complete = {
            let mut bits = self.bits.lock();
            if bits.removed {
                return;
            }
            let mut pages = BTreeSet::new();
            for piece in &plan.pieces {
                if bits.have.contains(*piece) {
                    bits.synced.insert(*piece);
                }
                bits.intended.remove(*piece);
                pages.insert(layout::page_of(*piece));
            }
            for page in pages {
                layout::put_bitmap_page(&mut bitmaps, HAVE, &id, &bits.synced, page);
                layout::put_bitmap_page(&mut bitmaps, DIRTY, &id, &bits.intended, page);
            }
            plan.finished && bits.finished && bits.synced.is_full()
        };
        let mut state = self.shared.state.lock();
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

    /// Takes note of how the checkpoint went. Returns how many bytes are synced and whether nothing is left.
    pub(super) fn end_checkpoint(&self, plan: &Plan, applied: bool) -> (u64, bool) {
        let synced = {
            let mut bits = self.bits.lock();
            if bits.removed {
                return (0, true);
            }
            for piece in &plan.pieces {
                if applied {
                    bits.unsynced.remove(piece);
                } else {
                    bits.synced.remove(*piece);
                    bits.intended.insert(*piece);
                }
            }
            // Unless it was renamed in the meantime.
            bits.name_synced |= applied && plan.finished == bits.finished;
            let synced = if applied { plan.bytes.min(bits.unsynced_bytes) } else { 0 };
            bits.unsynced_bytes -= synced;
            synced
        };
        if let Some(slot) = self.shared.state.lock().slots.get_mut(&self.id()) {
            slot.stored = applied;
            slot.record.complete &= applied;
        }
        (synced, self.is_clean())
    }

    /// Whether the index and the disk have everything.
    pub(super) fn is_clean(&self) -> bool {
        let finished = {
            let bits = self.bits.lock();
            if bits.removed {
                return true;
            }
            if !bits.unsynced.is_empty() {
                return false;
            }
            bits.finished
        };
        let state = self.shared.state.lock();
        state.slots.get(&self.id()).is_none_or(|slot| slot.stored && (slot.record.complete || !finished))
    }

    /// No longer claims pieces that turned out to be wrong.
    pub(super) async fn drop_pieces(self: &Arc<Self>, pieces: &[PieceIndex]) -> Result<(), LibraryError> {
        let (id, layout) = (self.id(), self.layout());
        let _guard = self.shared.lock(&id).await;
        let mut batch = Batch::new();
        {
            let mut state = self.shared.state.lock();
            if let Some(slot) = state.slots.get_mut(&id).filter(|slot| slot.record.complete) {
                slot.record.complete = false;
                slot.stored = false;
            }
            state.put_record(&mut batch, &id);
        }
        let count = {
            let mut bits = self.bits.lock();
            if bits.removed {
                return Ok(());
            }
            for piece in pieces {
                bits.have.remove(*piece);
                bits.synced.remove(*piece);
                bits.verified.remove(*piece);
                bits.unsynced.remove(piece);
            }
            bits.finished = false;
            for page in 0..layout::bitmap_pages(layout) {
                layout::put_bitmap_page(&mut batch, HAVE, &id, &bits.synced, page);
            }
            bits.have.count()
        };
        self.set_progress(count);
        tracing::warn!(%id, pieces = pieces.len(), "damaged pieces are no longer offered");
        self.shared.tell(LibraryEvent::Added(id));
        self.shared.tell(LibraryEvent::Damaged(id));
        self.shared.commit_in_parts(batch, Durability::Durable).await?;
        if let Some(slot) = self.shared.state.lock().slots.get_mut(&id) {
            slot.stored = true;
        }
        Ok(())
    }

    /// Offers the file no longer, since the user's file is another one.
    pub(super) async fn withdraw(self: &Arc<Self>) -> Result<(), LibraryError> {
        let id = self.id();
        let _guard = self.shared.lock(&id).await;
        if self.bits.lock().removed {
            return Ok(());
        }
        self.shared.withdraw_locked(&id).await
    }

    /// The file is not the library's any more: every later call on it is refused. Returns the bytes that were
    /// still to be synced.
    pub(super) fn retire(&self) -> u64 {
        let bytes = {
            let mut bits = self.bits.lock();
            bits.removed = true;
            bits.have = Bitmap::empty(self.layout());
            std::mem::take(&mut bits.unsynced_bytes)
        };
        self.progress.tell();
        bytes
    }

    pub(super) fn retire_from(&self) {
        let bytes = self.retire();
        self.shared.unsynced.fetch_sub(bytes, Ordering::AcqRel);
        self.shared.dirty.lock().remove(&self.id());
        self.shared.recent.forget(&self.id());
    }
}
