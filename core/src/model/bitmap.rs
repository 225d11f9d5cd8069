//! Sets of pieces of a file, one bit for each piece.

use super::layout::{PieceIndex, PieceLayout};

/// The bytes do not match the number of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid bitmap of {pieces} pieces: expected {expected} bytes with zero padding bits, found {actual} bytes"
)]
pub struct BitmapError {
    /// The number of pieces.
    pub pieces: u32,
    /// The expected number of bytes.
    pub expected: usize,
    /// The actual number of bytes.
    pub actual: usize,
}

/// A set of pieces of one layout. Bit `i` is bit `i % 8` (from the least significant) of byte `i / 8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    bytes: Vec<u8>,
    pieces: u32,
    ones: u32,
}

impl Bitmap {
    /// The empty set.
    pub fn empty(layout: PieceLayout) -> Self {
        Self { bytes: vec![0; layout.count().div_ceil(8) as usize], pieces: layout.count(), ones: 0 }
    }

    /// The set of all pieces.
    pub fn full(layout: PieceLayout) -> Self {
        let mut all = Self::empty(layout);
        for piece in layout.pieces() {
            all.insert(piece);
        }
        all
    }

    /// Decodes the output of [`Bitmap::as_bytes`] for the same layout.
    pub fn from_bytes(layout: PieceLayout, bytes: &[u8]) -> Result<Self, BitmapError> {
        let pieces = layout.count();
        let expected = pieces.div_ceil(8) as usize;
        let padding = expected * 8 - pieces as usize;
        let padding_is_zero = bytes.last().is_none_or(|last| padding == 0 || last >> (8 - padding) == 0);
        if bytes.len() != expected || !padding_is_zero {
            return Err(BitmapError { pieces, expected, actual: bytes.len() });
        }
        let ones = bytes.iter().map(|byte| byte.count_ones()).sum();
        Ok(Self { bytes: bytes.to_vec(), pieces, ones })
    }

    /// The bits, eight per byte.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns whether the piece is in the set.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.bytes.get(piece.as_usize() / 8).is_some_and(|byte| byte >> (piece.get() % 8) & 1 == 1)
    }

    /// Inserts a piece and returns whether it is new. A piece of a larger layout is ignored.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        if piece.get() >= self.pieces || self.contains(piece) {
            return false;
        }
        self.bytes[piece.as_usize() / 8] |= 1 << (piece.get() % 8);
        self.ones += 1;
        true
    }

    /// Removes a piece and returns whether it was in the set.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        if !self.contains(piece) {
            return false;
        }
        self.bytes[piece.as_usize() / 8] &= !(1 << (piece.get() % 8));
        self.ones -= 1;
        true
    }

    /// The number of pieces in the set.
    pub const fn count(&self) -> u32 {
        self.ones
    }

    /// Returns whether the set contains all pieces.
    pub const fn is_full(&self) -> bool {
        self.ones == self.pieces
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(&self) -> bool {
        self.ones == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn layout(pieces: u32) -> PieceLayout {
        PieceLayout::new(u64::from(pieces) * 256 * 1024).unwrap()
    }

    #[test]
    fn nonzero_padding_and_wrong_length_are_refused() {
        let nine = layout(9);
        assert!(Bitmap::from_bytes(nine, &[0xff, 0x01]).unwrap().is_full());
        assert!(Bitmap::from_bytes(nine, &[0xff, 0x02]).is_err());
        assert!(Bitmap::from_bytes(nine, &[0xff]).is_err());
        assert!(Bitmap::from_bytes(nine, &[0, 0, 0]).is_err());
        assert!(Bitmap::from_bytes(layout(0), &[]).unwrap().is_full());
    }

    proptest! {
        #[test]
        fn bitmap_behaves_like_a_set(pieces in 1u32..100, steps in prop::collection::vec((0u32..100, any::<bool>()), 0..200)) {
            let layout = layout(pieces);
            let mut bitmap = Bitmap::empty(layout);
            let mut model = BTreeSet::new();
            for (index, put) in steps {
                let Some(piece) = layout.piece(index) else { continue };
                if put {
                    prop_assert_eq!(bitmap.insert(piece), model.insert(index));
                } else {
                    prop_assert_eq!(bitmap.remove(piece), model.remove(&index));
                }
                prop_assert_eq!(bitmap.count() as usize, model.len());
            }
            prop_assert_eq!(Bitmap::from_bytes(layout, bitmap.as_bytes()).unwrap(), bitmap);
        }
    }
}
