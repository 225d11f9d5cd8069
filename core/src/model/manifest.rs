//! Manifests: the piece hashes of a file, verified against its id.
//!
//! Pieces are aligned subtrees of the file's BLAKE3 tree (BLAKE3 specification, section 2.1; crate `blake3`, module
//! `hazmat`). The hash of a single piece is the id. Otherwise the hashes are chaining values, which merge pairwise into the id,
//! split at the largest power of two below the count.
//!
//! A manifest proves the content but not the size: with another claimed size and the same number of pieces, the hashes merge
//! into the same id. The last piece proves the size when it verifies at its offset and length.

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::id::FileId;
use super::layout::{PieceIndex, PieceLayout};

/// The hash of a piece: a chaining value, or the id if the file has a single piece.
pub type PieceHash = [u8; 32];

/// The piece hashes are not the manifest of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The number of hashes differs from the number of pieces.
    #[error("expected {expected} piece hashes for a file of {size} bytes, found {actual}")]
    Count {
        /// The claimed size of the file in bytes.
        size: u64,
        /// The number of pieces at that size.
        expected: usize,
        /// The actual number of hashes.
        actual: usize,
    },
    /// The hashes do not merge into the id.
    #[error("the piece hashes do not merge into the id {id}")]
    Mismatch {
        /// The expected id.
        id: FileId,
    },
}

/// The id, layout and piece hashes of a file. The hashes merge into the id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    id: FileId,
    layout: PieceLayout,
    hashes: Vec<PieceHash>,
}

impl Manifest {
    /// Verifies that `hashes` are the piece hashes of the file `id`.
    pub fn verify(id: FileId, layout: PieceLayout, hashes: Vec<PieceHash>) -> Result<Self, ManifestError> {
        let manifest = Self::from_hashes(layout, hashes)?;
        if manifest.id == id { Ok(manifest) } else { Err(ManifestError::Mismatch { id }) }
    }

    /// Computes the id from the hashes of all pieces.
    pub fn from_hashes(layout: PieceLayout, hashes: Vec<PieceHash>) -> Result<Self, ManifestError> {
        if hashes.len() != layout.count() as usize {
            return Err(ManifestError::Count {
                size: layout.size(),
                expected: layout.count() as usize,
                actual: hashes.len(),
            });
        }
        let id = match hashes.as_slice() {
            [] => *blake3::hash(b"").as_bytes(),
            [only] => *only,
            many => {
                let (left, right) = many.split_at(left_count(many.len()));
                *merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes()
            }
        };
        Ok(Self { id: FileId::from_bytes(id), layout, hashes })
    }

    /// The id of the file.
    pub const fn id(&self) -> FileId {
        self.id
    }

    /// The layout of the file.
    pub const fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The hashes of the pieces in order.
    pub fn hashes(&self) -> &[PieceHash] {
        &self.hashes
    }

    /// Returns whether `content` has the length and the hash of the piece.
    pub fn piece_is(&self, piece: PieceIndex, content: &[u8]) -> bool {
        self.hashes.get(piece.as_usize()).is_some_and(|expected| {
            content.len() == self.layout.len(piece) && hash_piece(self.layout, piece, content) == *expected
        })
    }
}

/// Computes the hash of a piece.
///
/// # Panics
/// If `content` does not have the length of the piece. Callers check untrusted content, as [`Manifest::piece_is`] does.
pub fn hash_piece(layout: PieceLayout, piece: PieceIndex, content: &[u8]) -> PieceHash {
    assert_eq!(content.len(), layout.len(piece), "the caller checks the length of the piece");
    if layout.count() == 1 {
        return *blake3::hash(content).as_bytes();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(layout.offset(piece)).update(content);
    hasher.finalize_non_root()
}

/// Returns the chaining value of the subtree over the hashes.
fn merge(hashes: &[PieceHash]) -> PieceHash {
    match hashes {
        [only] => *only,
        many => {
            let (left, right) = many.split_at(left_count(many.len()));
            merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// Returns the number of pieces in the left subtree: the largest power of two below `count`, which is at least 2.
fn left_count(count: usize) -> usize {
    count.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest_builder::ManifestBuilder;
    use proptest::prelude::*;

    fn manifest_of(content: &[u8]) -> Manifest {
        let layout = PieceLayout::new(content.len() as u64).unwrap();
        let hashes = layout
            .pieces()
            .map(|piece| {
                let start = layout.offset(piece) as usize;
                hash_piece(layout, piece, &content[start..start + layout.len(piece)])
            })
            .collect();
        Manifest::from_hashes(layout, hashes).unwrap()
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn id_is_blake3_hash_at_piece_boundaries() {
        let piece = 256 * 1024;
        let sizes = [0, 1, 63, 64, 65, 1023, 1024, 1025]
            .into_iter()
            .chain((1..=9).flat_map(|n| [n * piece - 1, n * piece, n * piece + 1]));
        for size in sizes {
            let content = pattern(size);
            assert_eq!(manifest_of(&content).id().as_bytes(), blake3::hash(&content).as_bytes(), "{size}");
        }
    }

    #[test]
    fn id_of_file_of_several_gib_is_blake3_hash() {
        // 2.5 GiB of zeros in pieces of 512 KiB, hashed piece by piece.
        let size = (5u64 << 29) + 12_345;
        let layout = PieceLayout::new(size).unwrap();
        assert_eq!(layout.piece_size(), 512 * 1024);
        let zeros = vec![0; layout.piece_size() as usize];
        let mut whole = blake3::Hasher::new();
        let mut builder = ManifestBuilder::new();
        let mut hashes = Vec::new();
        for piece in layout.pieces() {
            let content = &zeros[..layout.len(piece)];
            whole.update(content);
            builder.update(content).unwrap();
            hashes.push(hash_piece(layout, piece, content));
        }
        let manifest = Manifest::from_hashes(layout, hashes).unwrap();
        assert_eq!(manifest.id().as_bytes(), whole.finalize().as_bytes());
        assert_eq!(manifest, builder.finish(), "the piece size doubled after 2 GiB");
    }

    #[test]
    fn wrong_hash_or_count_is_refused() {
        let good = manifest_of(&pattern(700_000));
        let (id, layout) = (good.id(), good.layout());
        let mut changed = good.hashes().to_vec();
        changed[1][0] ^= 1;
        let mut swapped = good.hashes().to_vec();
        swapped.swap(0, 1);
        for wrong in [changed, swapped] {
            assert_eq!(Manifest::verify(id, layout, wrong), Err(ManifestError::Mismatch { id }));
        }
        for wrong in [good.hashes()[1..].to_vec(), [good.hashes(), good.hashes()].concat()] {
            assert!(matches!(Manifest::verify(id, layout, wrong), Err(ManifestError::Count { .. })));
        }
    }

    #[test]
    fn wrong_size_fails_at_last_piece() {
        let content = pattern(700_000);
        let good = manifest_of(&content);
        let claimed = PieceLayout::new(700_001).unwrap();
        let wrong = Manifest::verify(good.id(), claimed, good.hashes().to_vec()).unwrap();
        let last = claimed.last().unwrap();
        let mut longer = content[claimed.offset(last) as usize..].to_vec();
        assert!(!wrong.piece_is(last, &longer), "the true content does not have the claimed length");
        longer.push(0);
        assert!(!wrong.piece_is(last, &longer), "no content of the claimed length has the hash");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn id_is_blake3_hash_at_any_size(size in 0usize..3_000_000) {
            let content = pattern(size);
            let manifest = manifest_of(&content);
            prop_assert_eq!(*manifest.id().as_bytes(), *blake3::hash(&content).as_bytes());
        }
    }
}
