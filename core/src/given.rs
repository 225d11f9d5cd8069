//! Which pieces of a file a source gave to anybody, so that it gives each of them once before it gives any twice.
//!
//! Pure. It goes by rounds: once every piece was given, none counts as given. So nothing of an earlier swarm holds up
//! a later one for good: what that one was not given is given first, and then everything is open again. Known as super-seeding
//! elsewhere, but here the downloaders choose, and ask *sparingly* only while there are others to trade with.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::library::file::LibraryFile;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};

/// Of how many files it is remembered what was given.
const MAX_FILES: usize = 64;

/// What was given of one file in this round.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    layout: PieceLayout,
    pieces: Bitmap,
}

impl Given {
    /// Nothing yet.
    pub(crate) fn new(layout: PieceLayout) -> Self {
        Self { layout, pieces: Bitmap::empty(layout) }
    }

    /// Counts the piece as given; whether it did not before.
    pub(crate) fn give(&mut self, piece: PieceIndex) -> bool {
        let new = self.pieces.insert(piece);
        if self.pieces.is_full() {
            self.pieces = Bitmap::empty(self.layout);
        }
        new
    }

    /// It was not given after all.
    pub(crate) fn take_back(&mut self, piece: PieceIndex) {
        self.pieces.remove(piece);
    }

    /// The pieces that were given.
    pub(crate) fn pieces(&self) -> &Bitmap {
        &self.pieces
    }
}

type Shared = Arc<Mutex<Given>>;

/// What was given of the files that somebody asked for sparingly.
#[derive(Debug, Default)]
pub(crate) struct Giving {
    files: Mutex<HashMap<FileId, Shared>>,
}

impl Giving {
    /// One request's share in what is given of a file. Who has only a part is not asked sparingly and gives to everybody.
    pub(crate) fn of(&self, file: &LibraryFile, sparing: bool) -> Share {
        let mut files = self.files.lock();
        let id = file.id();
        let mut given = files.get(&id).cloned();
        if given.is_none() && sparing && file.is_complete() {
            if files.len() >= MAX_FILES {
                files.clear();
            }
            let new = Arc::new(Mutex::new(Given::new(file.layout())));
            given = Some(Arc::clone(files.entry(id).or_insert(new)));
        }
        Share { given, piece: Mutex::new(None) }
    }
}

/// Takes back what it gave when it is dropped before that was sent.
#[derive(Debug)]
pub(crate) struct Share {
    given: Option<Shared>,
    piece: Mutex<Option<PieceIndex>>,
}

impl Share {
    /// Whether the piece is to be given to who asks for it; then it counts as given.
    pub(crate) fn give(&self, piece: PieceIndex, sparing: bool) -> bool {
        let Some(given) = &self.given else { return true };
        let new = given.lock().give(piece);
        if new {
            // What somebody else got before stays given, whatever becomes of this request.
            *self.piece.lock() = Some(piece);
        }
        new || !sparing
    }

    /// The bitmap of the pieces that were given.
    pub(crate) fn given(&self) -> Bytes {
        let bytes = |given: &Shared| Bytes::copy_from_slice(given.lock().pieces().as_bytes());
        self.given.as_ref().map_or_else(Bytes::new, bytes)
    }

    /// What was given has been read and goes out.
    pub(crate) fn sent(self) {
        *self.piece.lock() = None;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let (Some(given), Some(piece)) = (&self.given, *self.piece.lock()) {
            given.lock().take_back(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_given_once_before_any_is_given_twice() {
        let layout = PieceLayout::new(3 * 256 * 1024).unwrap();
        let piece = |index| layout.piece(index).unwrap();
        let mut given = Given::new(layout);
        assert!(given.give(piece(0)));
        assert!(!given.give(piece(0)));
        assert!(given.give(piece(1)));
        given.take_back(piece(1));
        assert!(given.give(piece(1)));
        assert!(given.give(piece(2)));
        assert!(given.pieces().is_empty(), "a new round");
        assert!(given.give(piece(0)));
    }

    #[test]
    fn who_insists_gets_it_and_takes_back_nothing_that_another_got() {
        let layout = PieceLayout::new(3 * 256 * 1024).unwrap();
        let piece = layout.piece(0).unwrap();
        let given = Arc::new(Mutex::new(Given::new(layout)));
        let share = || Share { given: Some(Arc::clone(&given)), piece: Mutex::new(None) };
        let first = share();
        assert!(first.give(piece, true));
        first.sent();
        let second = share();
        assert!(second.give(piece, false));
        // It went away before that was sent.
        drop(second);
        assert!(!share().give(piece, true));
        let third = share();
        assert!(third.give(layout.piece(1).unwrap(), true));
        drop(third);
        assert_eq!(given.lock().pieces().count(), 1);
    }
}
