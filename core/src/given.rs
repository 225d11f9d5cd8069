//! Which pieces of a file a source gave to anybody, so that it gives each of them once before it gives any twice.
//!
//! Pure. It goes by rounds: once every piece was given, none counts as given. So nothing of an earlier swarm holds up
//! a later one for good: what that one was not given is given first, and then everything is open again. Known as super-seeding
//! elsewhere, but here the downloaders choose, and ask *sparingly* only while there are others to trade with.

use crate::model::bitmap::Bitmap;
use crate::model::layout::{PieceIndex, PieceLayout};

/// What was given of one file in this round.
#[derive(Debug, Clone)]
pub struct Given {
    layout: PieceLayout,
    pieces: Bitmap,
}

impl Given {
    /// Nothing yet.
    pub fn new(layout: PieceLayout) -> Self {
        Self { layout, pieces: Bitmap::empty(layout) }
    }

    /// Whether the piece is to be given to who asks for it; then it counts as given.
    pub fn give(&mut self, piece: PieceIndex, sparing: bool) -> bool {
        let new = self.pieces.insert(piece);
        if self.pieces.is_full() {
            self.pieces = Bitmap::empty(self.layout);
        }
        new || !sparing
    }

    /// It was not given after all.
    pub fn take_back(&mut self, piece: PieceIndex) {
        self.pieces.remove(piece);
    }

    /// The pieces that were given.
    pub fn pieces(&self) -> &Bitmap {
        &self.pieces
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
        assert!(given.give(piece(0), true));
        assert!(!given.give(piece(0), true));
        assert!(given.give(piece(0), false), "who insists gets it");
        assert!(given.give(piece(1), true));
        given.take_back(piece(1));
        assert!(given.give(piece(1), true));
        assert!(given.give(piece(2), true));
        assert!(given.pieces().is_empty(), "a new round");
        assert!(given.give(piece(0), true));
    }
}
