//! Writing pieces to a file of the library: expected, intended, hashed, written.
//!
//! The index records that a piece may be written before the piece counts as stored. It does so ahead of time,
//! for many expected pieces at once: a commit for each write would cost more than the write, and would wait
//! for syncs.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::content_files::ContentFile;
use super::entry::LibraryEvent;
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::FileStore;
use super::layout::{self, DIRTY};
use super::task::{blocking, in_task};
use enjambre_core::{Batch, Durability, Manifest, PieceIndex, runtime};

/// The number of bytes of expected pieces that are recorded as intended at once.
const INTENT_BYTES: u64 = 2 << 20;

/// The numbers of written and of invalid pieces.
type Written = (Vec<PieceIndex>, Vec<PieceIndex>);

/// Hashes pieces and writes the valid ones, each while it is in the CPU caches. Blocks.
fn write_valid(
    file: &ContentFile,
    manifest: &Manifest,
    pieces: Vec<(PieceIndex, Bytes)>,
    allocate: bool,
) -> Result<Written> {
    let (mut written, mut invalid) = (Vec::with_capacity(pieces.len()), Vec::new());
    if allocate {
        file.preallocate(manifest.layout().size())?;
    }
    for (piece, content) in pieces {
        if !manifest.piece_is(piece, &content) {
            invalid.push(piece);
            continue;
        }
        file.write(manifest.layout(), piece, &content)?;
        written.push(piece);
    }
    Ok((written, invalid))
}

impl LibraryFile {
    /// Announces that a piece was requested and will probably be written soon. The index records expected
    /// pieces ahead of time, so that the write need not wait for a commit.
    pub fn expect(self: &Arc<Self>, piece: PieceIndex) {
        let begin = {
            let mut state = self.state.lock();
            if state.have.contains(piece) || state.intended.contains(piece) {
                return;
            }
            state.expected.insert(piece);
            let bytes = state.expected.len() as u64 * u64::from(self.layout().piece_size());
            let begin = bytes >= INTENT_BYTES && !state.recording;
            state.recording |= begin;
            begin
        };
        if begin {
            let file = Arc::clone(self);
            runtime::spawn(async move {
                // After an error the write tries again and reports the error.
                let _ = file.record_intended(&[]).await;
                file.state.lock().recording = false;
            });
        }
    }

    /// Hashes pieces, stores the valid ones and returns the invalid ones. Skips pieces that are already
    /// stored. On return the pieces are readable and survive a crash of the process; a sync follows in the
    /// background. If the future is dropped, either all or none of the valid pieces are stored.
    ///
    /// # Errors
    /// [`LibraryError::Full`] if the disk is full; the call may be repeated.
    pub async fn write_pieces(self: &Arc<Self>, pieces: Vec<(PieceIndex, Bytes)>) -> Result<Vec<PieceIndex>> {
        self.check_usable()?;
        let invalid = in_task(Arc::clone(self).write_now(pieces)).await?;
        self.inner.keep_up().await?;
        Ok(invalid)
    }

    async fn write_now(self: Arc<Self>, mut pieces: Vec<(PieceIndex, Bytes)>) -> Result<Vec<PieceIndex>> {
        let _gate = self.gate.read().await;
        self.check_usable()?;
        let layout = self.layout();
        let (store, allocate) = {
            let state = self.state.lock();
            pieces.retain(|(piece, _)| {
                layout.piece(piece.get()) != Some(*piece) || !state.have.contains(*piece)
            });
            // The last piece proves the size, so the blocks can be allocated from then on.
            let proven = layout.last().is_some_and(|last| state.have.contains(last));
            let allocate = proven && !state.allocated && layout.count() > 1;
            (state.store.clone(), allocate)
        };
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let numbers: Vec<PieceIndex> = pieces.iter().map(|(piece, _)| *piece).collect();
        let (written, recorded) =
            tokio::join!(self.write_content(store, pieces, allocate), self.record_intended(&numbers));
        let (pieces, invalid) = written?;
        recorded?;

        let mut bytes = 0;
        let first = {
            let mut state = self.state.lock();
            let first = state.have.is_empty() && !pieces.is_empty();
            for piece in pieces {
                state.expected.remove(&piece);
                // A concurrent call may have stored the piece.
                if state.add_piece(piece, layout.len(piece)) {
                    bytes += layout.len(piece) as u64;
                }
            }
            state.allocated |= allocate;
            first
        };
        if bytes > 0 {
            self.update_progress();
            self.inner.mark_dirty(Arc::clone(&self) as _, bytes);
        }
        if first && layout.count() == 1 {
            self.inner.notify(LibraryEvent::Added(self.id()));
        }
        Ok(invalid)
    }

    pub(super) async fn write_content(
        &self,
        store: FileStore,
        pieces: Vec<(PieceIndex, Bytes)>,
        allocate: bool,
    ) -> Result<Written> {
        let manifest = Arc::clone(&self.manifest);
        match store {
            FileStore::Database(content) => {
                let (valid, invalid) = blocking(move || {
                    let is_valid =
                        |(piece, content): &(PieceIndex, Bytes)| manifest.piece_is(*piece, content);
                    Ok(pieces.into_iter().partition::<Vec<_>, _>(is_valid))
                })
                .await?;
                let id = self.id();
                content.put(valid.iter().map(|(piece, content)| (&id, piece.get(), content))).await?;
                let numbers =
                    |pieces: Vec<(PieceIndex, Bytes)>| pieces.into_iter().map(|(piece, _)| piece).collect();
                Ok((numbers(valid), numbers(invalid)))
            }
            FileStore::File(file) => blocking(move || write_valid(&file, &manifest, pieces, allocate)).await,
            FileStore::Part(part) => {
                blocking(move || write_valid(&part.file, &manifest, pieces, allocate)).await
            }
            // A linked file is complete. If pieces are missing, it was withdrawn.
            FileStore::Linked(_) => Err(self.changed()),
        }
    }

    /// Records in the index that these pieces and the expected ones may be written from now on, and the file
    /// itself if it is new.
    async fn record_intended(&self, pieces: &[PieceIndex]) -> Result<()> {
        let id = self.id();
        let is_recorded = || {
            let state = self.state.lock();
            !state.retired && !pieces.is_empty() && pieces.iter().all(|piece| state.intended.contains(*piece))
        };
        // Without the lock, since a checkpoint holds it while it waits for the disk.
        let stored = self.inner.state.lock().slots.get(&id).is_some_and(|slot| slot.stored);
        if stored && is_recorded() {
            return Ok(());
        }
        let _guard = self.inner.lock(&id).await;
        let mut batch = Batch::new();
        let new: Vec<PieceIndex> = {
            let mut state = self.state.lock();
            if state.retired {
                return Err(LibraryError::not_found(id));
            }
            let expected = std::mem::take(&mut state.expected);
            let mut intended = state.intended.clone();
            let new: Vec<_> =
                pieces.iter().copied().chain(expected).filter(|piece| intended.insert(*piece)).collect();
            let pages: BTreeSet<usize> = new.iter().map(|piece| layout::page_of(*piece)).collect();
            for page in pages {
                layout::put_bitmap_page(&mut batch, DIRTY, &id, &intended, page);
            }
            new
        };
        self.inner.state.lock().put_record(&mut batch, &id);
        if batch.is_empty() {
            return Ok(());
        }
        self.inner.index.commit(batch, Durability::Buffered).await?;
        {
            let mut state = self.state.lock();
            for piece in new {
                state.intended.insert(piece);
            }
        }
        self.inner.state.lock().set_stored(&id);
        Ok(())
    }
}
