//! Division of a file into pieces.
//!
//! A piece is an aligned subtree of the file's BLAKE3 tree, so its hash is a node of that tree and the piece hashes merge
//! into the file's id. The piece size is a pure function of the file size, so that all publishers of a file offer the same
//! pieces.

use serde::{Deserialize, Serialize};

/// The minimum piece size: 256 KiB.
pub const MIN_PIECE_SIZE: u32 = 256 * 1024;
/// The maximum piece size and message payload: 4 MiB.
pub const MAX_PIECE_SIZE: u32 = 4 * 1024 * 1024;
/// The maximum file size: 4 TiB, which is a million pieces with 32 MiB of hashes.
pub const MAX_FILE_SIZE: u64 = 1 << 42;

/// The index of a piece. Only a [`PieceLayout`] creates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The index as a number from 0.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The index for use with slices.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// A file is larger than [`MAX_FILE_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("file size {size} exceeds the maximum of {MAX_FILE_SIZE} bytes")]
pub struct FileTooLarge {
    /// The requested size in bytes.
    pub size: u64,
}

/// The pieces of a file of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct PieceLayout {
    size: u64,
    piece_size: u32,
}

impl PieceLayout {
    /// The layout of a file of `size` bytes.
    pub fn new(size: u64) -> Result<Self, FileTooLarge> {
        if size > MAX_FILE_SIZE {
            return Err(FileTooLarge { size });
        }
        let wanted = size.div_ceil(8192).next_power_of_two();
        let piece_size = wanted.clamp(u64::from(MIN_PIECE_SIZE), u64::from(MAX_PIECE_SIZE)) as u32;
        Ok(Self { size, piece_size })
    }

    /// The size of the file in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The size in bytes of every piece except the last, which may be shorter.
    pub const fn piece_size(&self) -> u32 {
        self.piece_size
    }

    /// The number of pieces; 0 for an empty file.
    pub const fn count(&self) -> u32 {
        self.size.div_ceil(self.piece_size as u64) as u32
    }

    /// Returns the piece with this index if it exists.
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.count()).then_some(PieceIndex(index))
    }

    /// Returns the piece that contains the byte at `offset`, or `None` beyond the end.
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        if offset >= self.size() {
            return None;
        }
        self.piece(u32::try_from(offset / u64::from(self.piece_size())).ok()?)
    }

    /// Returns the last piece, or `None` for an empty file.
    pub fn last(&self) -> Option<PieceIndex> {
        self.count().checked_sub(1).map(PieceIndex)
    }

    /// All pieces in ascending order.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = PieceIndex> + DoubleEndedIterator + use<> {
        (0..self.count()).map(PieceIndex)
    }

    /// The offset of the piece in bytes.
    pub const fn offset(&self, piece: PieceIndex) -> u64 {
        piece.0 as u64 * self.piece_size as u64
    }

    /// The length of the piece in bytes, at least 1. `piece` must come from this layout.
    pub const fn len(&self, piece: PieceIndex) -> usize {
        let rest = self.size.saturating_sub(self.offset(piece));
        if rest < self.piece_size as u64 { rest as usize } else { self.piece_size as usize }
    }

    /// Returns whether the file is empty.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }
}

impl TryFrom<u64> for PieceLayout {
    type Error = FileTooLarge;

    fn try_from(size: u64) -> Result<Self, FileTooLarge> {
        Self::new(size)
    }
}

impl From<PieceLayout> for u64 {
    fn from(layout: PieceLayout) -> u64 {
        layout.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn piece_size_follows_documented_formula() {
        for (size, piece) in [
            (0, 256 << 10),
            (1, 256 << 10),
            (2 << 30, 256 << 10),
            ((2 << 30) + 1, 512 << 10),
            (32 << 30, 4 << 20),
            (1 << 42, 4 << 20),
        ] {
            assert_eq!(PieceLayout::new(size).unwrap().piece_size(), piece, "{size}");
        }
        assert!(PieceLayout::new(MAX_FILE_SIZE + 1).is_err());
    }

    proptest! {
        #[test]
        fn pieces_cover_the_file_exactly(size in 0u64..40_000_000_000) {
            let layout = PieceLayout::new(size).unwrap();
            let covered: u64 = layout.pieces().map(|piece| layout.len(piece) as u64).sum();
            prop_assert_eq!(covered, size);
            prop_assert!(layout.pieces().all(|piece| layout.len(piece) >= 1));
            prop_assert_eq!(layout.piece(layout.count()), None);
        }
    }
}
