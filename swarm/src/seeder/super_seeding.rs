//! Super-seeding: the pieces of a file that a complete provider has sent to any peer, so that it sends each piece once
//! before it sends any piece twice. Pure.
//!
//! Sent pieces are counted in rounds: when every piece was sent, all of them count as unsent again. So the pieces that an
//! earlier swarm received do not stay excluded. Unlike in BitTorrent's super-seeding the downloaders choose the pieces,
//! and they only use it while there are partial providers to exchange pieces with.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::library::file::LibraryFile;
use enjambre_core::{Bitmap, FileId, PieceIndex, PieceLayout};

/// Maximum number of files whose sent pieces are tracked.
const MAX_FILES: usize = 64;

/// The pieces of one file that were sent in this round.
#[derive(Debug, Clone)]
pub(crate) struct SentPieces {
    layout: PieceLayout,
    pieces: Bitmap,
}

impl SentPieces {
    pub(crate) fn new(layout: PieceLayout) -> Self {
        Self { layout, pieces: Bitmap::empty(layout) }
    }

    /// Marks a piece as sent. Returns `false` if it already was.
    pub(crate) fn insert(&mut self, piece: PieceIndex) -> bool {
        let is_new = self.pieces.insert(piece);
        if self.pieces.is_full() {
            self.pieces = Bitmap::empty(self.layout);
        }
        is_new
    }

    /// Marks a piece as not sent.
    pub(crate) fn remove(&mut self, piece: PieceIndex) {
        self.pieces.remove(piece);
    }

    pub(crate) fn pieces(&self) -> &Bitmap {
        &self.pieces
    }
}

type SharedPieces = Arc<Mutex<SentPieces>>;

/// The sent pieces of the files that were requested with super-seeding.
#[derive(Debug, Default)]
pub(super) struct SuperSeeding {
    files: Mutex<HashMap<FileId, SharedPieces>>,
}

impl SuperSeeding {
    /// Creates the claim of one request. Only complete files are super-seeded.
    pub(super) fn claim(&self, file: &LibraryFile, super_seed: bool) -> PieceClaim {
        let mut files = self.files.lock();
        let id = file.id();
        let mut sent = files.get(&id).cloned();
        if sent.is_none() && super_seed && file.is_complete() {
            if files.len() >= MAX_FILES {
                files.clear();
            }
            let new = Arc::new(Mutex::new(SentPieces::new(file.layout())));
            sent = Some(Arc::clone(files.entry(id).or_insert(new)));
        }
        PieceClaim { sent, piece: None }
    }
}

/// A piece that one request marked as sent. Dropping the claim before [`commit`](Self::commit) undoes that.
#[derive(Debug)]
pub(super) struct PieceClaim {
    sent: Option<SharedPieces>,
    piece: Option<PieceIndex>,
}

impl PieceClaim {
    /// Marks the piece as sent and returns whether to send it.
    pub(super) fn take(&mut self, piece: PieceIndex, super_seed: bool) -> bool {
        let Some(sent) = &self.sent else { return true };
        let is_new = sent.lock().insert(piece);
        if is_new {
            // A piece that another request marked stays marked.
            self.piece = Some(piece);
        }
        is_new || !super_seed
    }

    pub(super) fn sent_pieces(&self) -> Bytes {
        let bytes = |sent: &SharedPieces| Bytes::copy_from_slice(sent.lock().pieces().as_bytes());
        self.sent.as_ref().map_or_else(Bytes::new, bytes)
    }

    pub(super) fn commit(mut self) {
        self.piece = None;
    }
}

impl Drop for PieceClaim {
    fn drop(&mut self) {
        if let (Some(sent), Some(piece)) = (&self.sent, self.piece) {
            sent.lock().remove(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_sent_once_per_round() {
        let layout = PieceLayout::new(3 * 256 * 1024).unwrap();
        let piece = |index| layout.piece(index).unwrap();
        let mut sent = SentPieces::new(layout);
        assert!(sent.insert(piece(0)));
        assert!(!sent.insert(piece(0)));
        assert!(sent.insert(piece(1)));
        sent.remove(piece(1));
        assert!(sent.insert(piece(1)));
        assert!(sent.insert(piece(2)));
        assert!(sent.pieces().is_empty(), "a new round");
        assert!(sent.insert(piece(0)));
    }

    #[test]
    fn dropped_claim_unmarks_only_its_own_piece() {
        let layout = PieceLayout::new(3 * 256 * 1024).unwrap();
        let piece = layout.piece(0).unwrap();
        let sent = Arc::new(Mutex::new(SentPieces::new(layout)));
        let claim = || PieceClaim { sent: Some(Arc::clone(&sent)), piece: None };
        let mut first = claim();
        assert!(first.take(piece, true));
        first.commit();
        let mut second = claim();
        assert!(second.take(piece, false));
        // Dropped before the piece was sent.
        drop(second);
        assert!(!claim().take(piece, true));
        let mut third = claim();
        assert!(third.take(layout.piece(1).unwrap(), true));
        drop(third);
        assert_eq!(sent.lock().pieces().count(), 1);
    }
}
