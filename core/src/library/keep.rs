//! The way of a piece into a file of the library: expected, intended, hashed, written.
//!
//! That a piece may be there is noted in the index before anybody is told so. It is noted ahead, for many pieces that were
//! asked for at once: a commit for each write would cost more than the write, and would wait for those who sync.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::content_files::ContentFile;
use super::entry::LibraryEvent;
use super::error::LibraryError;
use super::file::{LibraryFile, Store};
use super::layout::{self, DIRTY};
use crate::model::layout::PieceIndex;
use crate::model::manifest::Manifest;
use crate::storage::value::{Batch, Durability};

/// For how many bytes of pieces at once it is noted that they may be written.
const INTENT_BYTES: u64 = 2 << 20;

/// Whether the room for a file that is filled is to be taken now.
#[derive(Debug, Clone, Copy)]
enum Room {
    Taken,
    Take,
    /// With this piece.
    TakeWith(PieceIndex),
}

/// What became of pieces that were to be kept.
#[derive(Debug)]
struct Kept {
    pieces: Vec<PieceIndex>,
    wrong: Vec<PieceIndex>,
    allocated: bool,
}

/// Hashes pieces and writes those that are right into a file, each while it is in the caches. Blocks.
fn keep(
    file: &ContentFile,
    manifest: &Manifest,
    pieces: Vec<(PieceIndex, Bytes)>,
    room: Room,
) -> Result<Kept, LibraryError> {
    let mut kept = Kept { pieces: Vec::with_capacity(pieces.len()), wrong: Vec::new(), allocated: false };
    if let Room::Take = room {
        file.preallocate(manifest.layout().size())?;
        kept.allocated = true;
    }
    for (piece, content) in pieces {
        if !manifest.piece_is(piece, &content) {
            kept.wrong.push(piece);
            continue;
        }
        if matches!(room, Room::TakeWith(last) if piece == last) {
            file.preallocate(manifest.layout().size())?;
            kept.allocated = true;
        }
        file.write(manifest.layout(), piece, &content)?;
        kept.pieces.push(piece);
    }
    Ok(kept)
}

impl LibraryFile {
    /// A piece was asked for and will be written soon, if nothing goes wrong. That it may be there is noted ahead,
    /// along with others, so that the write need not wait for it.
    pub fn expect(self: &Arc<Self>, piece: PieceIndex) {
        let begin = {
            let mut bits = self.bits.lock();
            if bits.have.contains(piece) || bits.intended.contains(piece) {
                return;
            }
            bits.expected.insert(piece);
            let bytes = bits.expected.len() as u64 * u64::from(self.layout().piece_size());
            let begin = bytes >= INTENT_BYTES && !bits.intending;
            bits.intending |= begin;
            begin
        };
        if begin {
            let file = Arc::clone(self);
            tokio::spawn(async move {
                // Where it fails, the write tries it again and tells.
                let _ = file.intend(&[]).await;
                file.bits.lock().intending = false;
            });
        }
    }

    /// Hashes pieces and keeps those that are right; returns those that are wrong. Pieces that are here already are
    /// passed over. On return they survive a crash of the process and can be read. A sync follows in the background.
    /// Dropping the future leaves the pieces of the call either kept or not kept.
    ///
    /// # Errors
    /// [`LibraryError::Full`] where there is no room; the call may be repeated.
    pub async fn write_pieces(
        self: &Arc<Self>,
        pieces: Vec<(PieceIndex, Bytes)>,
    ) -> Result<Vec<PieceIndex>, LibraryError> {
        self.check_usable()?;
        let file = Arc::clone(self);
        let wrong = layout::finished(tokio::spawn(async move { file.write_now(pieces).await })).await?;
        self.shared.keep_up().await?;
        Ok(wrong)
    }

    async fn write_now(
        self: Arc<Self>,
        mut pieces: Vec<(PieceIndex, Bytes)>,
    ) -> Result<Vec<PieceIndex>, LibraryError> {
        let _gate = self.gate.read().await;
        self.check_usable()?;
        let layout = self.layout();
        let (store, room) = {
            let bits = self.bits.lock();
            pieces.retain(|(piece, _)| {
                layout.piece(piece.get()) != Some(*piece) || !bits.have.contains(*piece)
            });
            // The last piece proves the size, so from then on the room can be taken.
            let last = layout.last().filter(|_| !bits.allocated && layout.count() > 1);
            let room = last.map_or(Room::Taken, |last| match bits.have.contains(last) {
                true => Room::Take,
                false => Room::TakeWith(last),
            });
            (bits.store.clone(), room)
        };
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let numbers: Vec<PieceIndex> = pieces.iter().map(|(piece, _)| *piece).collect();
        let (kept, intent) = tokio::join!(self.write_content(store, pieces, room), self.intend(&numbers));
        let Kept { pieces, wrong, allocated } = kept?;
        intent?;

        let mut written = 0;
        let (first, count) = {
            let mut bits = self.bits.lock();
            let first = bits.have.is_empty() && !pieces.is_empty();
            for piece in pieces {
                bits.expected.remove(&piece);
                // Another call may have brought it meanwhile.
                if bits.have.insert(piece) {
                    bits.verified.insert(piece);
                    bits.unsynced.insert(piece);
                    written += layout.len(piece) as u64;
                }
            }
            bits.allocated |= allocated;
            bits.unsynced_bytes += written;
            (first, bits.have.count())
        };
        if written > 0 {
            self.set_progress(count);
            self.shared.mark_dirty(&self, written);
        }
        if first && layout.count() == 1 {
            self.shared.tell(LibraryEvent::Added(self.id()));
        }
        Ok(wrong)
    }

    /// Hashes pieces and writes those that are right.
    async fn write_content(
        &self,
        store: Store,
        pieces: Vec<(PieceIndex, Bytes)>,
        room: Room,
    ) -> Result<Kept, LibraryError> {
        let manifest = Arc::clone(&self.manifest);
        match store {
            Store::Database(content) => {
                let (right, wrong) = layout::blocking(move || {
                    let is_right =
                        |(piece, content): &(PieceIndex, Bytes)| manifest.piece_is(*piece, content);
                    Ok(pieces.into_iter().partition::<Vec<_>, _>(is_right))
                })
                .await?;
                content.write(&self.id(), &right).await?;
                let number =
                    |pieces: Vec<(PieceIndex, Bytes)>| pieces.into_iter().map(|(piece, _)| piece).collect();
                Ok(Kept { pieces: number(right), wrong: number(wrong), allocated: false })
            }
            Store::File(file) => layout::blocking(move || keep(&file, &manifest, pieces, room)).await,
            Store::Part(part) => layout::blocking(move || keep(&part.file, &manifest, pieces, room)).await,
            // Whole, so there is nothing to write; it may have been withdrawn meanwhile.
            Store::Linked(_) => Err(self.changed()),
        }
    }

    /// Notes in the index that these pieces, and those that are expected, may be written from now on, and the file
    /// itself if it is new.
    async fn intend(&self, pieces: &[PieceIndex]) -> Result<(), LibraryError> {
        let id = self.id();
        let is_noted = || {
            let bits = self.bits.lock();
            !bits.removed && !pieces.is_empty() && pieces.iter().all(|piece| bits.intended.contains(*piece))
        };
        // Without the lock: a checkpoint holds it while it waits for the disk.
        let stored = self.shared.state.lock().slots.get(&id).is_some_and(|slot| slot.stored);
        if stored && is_noted() {
            return Ok(());
        }
        let _guard = self.shared.lock(&id).await;
        let mut batch = Batch::new();
        let new: Vec<PieceIndex> = {
            let mut bits = self.bits.lock();
            if bits.removed {
                return Err(LibraryError::not_found(id));
            }
            let expected = std::mem::take(&mut bits.expected);
            let mut intended = bits.intended.clone();
            let new: Vec<_> =
                pieces.iter().copied().chain(expected).filter(|piece| intended.insert(*piece)).collect();
            let pages: BTreeSet<usize> = new.iter().map(|piece| layout::page_of(*piece)).collect();
            for page in pages {
                layout::put_bitmap_page(&mut batch, DIRTY, &id, &intended, page);
            }
            new
        };
        self.shared.state.lock().put_record(&mut batch, &id);
        if batch.is_empty() {
            return Ok(());
        }
        self.shared.index.commit(batch, Durability::Buffered).await?;
        let mut bits = self.bits.lock();
        for piece in new {
            bits.intended.insert(piece);
        }
        drop(bits);
        if let Some(slot) = self.shared.state.lock().slots.get_mut(&id) {
            slot.stored = true;
        }
        Ok(())
    }
}
