//! Hashing of content whose size is known only at its end.

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root};

use super::layout::{FileTooLarge, PieceLayout};
use super::manifest::{Manifest, PieceHash};

/// Hashes content in its order and builds its manifest. The piece size is that of the content so far: when it doubles, the
/// hashes are merged in pairs.
#[derive(Debug)]
pub struct ManifestBuilder {
    size: u64,
    piece_size: u32,
    /// The hashes of the pieces before the current one.
    hashes: Vec<PieceHash>,
    /// The current piece, which may be complete.
    current: blake3::Hasher,
}

impl Default for ManifestBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestBuilder {
    /// Creates the builder of an empty file.
    pub fn new() -> Self {
        let piece_size = super::layout::MIN_PIECE_SIZE;
        Self { size: 0, piece_size, hashes: Vec::new(), current: blake3::Hasher::new() }
    }

    /// The number of bytes so far.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends content.
    ///
    /// # Errors
    /// The file is too large.
    pub fn update(&mut self, mut content: &[u8]) -> Result<(), FileTooLarge> {
        while !content.is_empty() {
            let start = self.hashes.len() as u64 * u64::from(self.piece_size);
            let rest = start + u64::from(self.piece_size) - self.size;
            if rest == 0 {
                // Not the last piece: there is more content.
                self.begin_piece()?;
                continue;
            }
            let (part, more) =
                content.split_at(content.len().min(usize::try_from(rest).unwrap_or(usize::MAX)));
            self.current.update(part);
            self.size += part.len() as u64;
            content = more;
        }
        Ok(())
    }

    fn begin_piece(&mut self) -> Result<(), FileTooLarge> {
        let layout = PieceLayout::new(self.size + 1)?;
        self.hashes.push(self.current.finalize_non_root());
        if layout.piece_size() > self.piece_size {
            self.piece_size = layout.piece_size();
            let pairs = self.hashes.chunks_exact(2);
            self.hashes = pairs.map(|pair| merge_subtrees_non_root(&pair[0], &pair[1], Mode::Hash)).collect();
        }
        self.current = blake3::Hasher::new();
        self.current.set_input_offset(self.size);
        Ok(())
    }

    /// Returns the manifest of the content.
    pub fn finish(self) -> Manifest {
        let Self { size, mut hashes, current, .. } = self;
        let layout = PieceLayout::new(size).expect("every byte was checked");
        match layout.count() {
            0 => {}
            1 => hashes.push(*current.finalize().as_bytes()),
            _ => hashes.push(current.finalize_non_root()),
        }
        Manifest::from_hashes(layout, hashes).expect("every piece has a hash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::MAX_FILE_SIZE;
    use crate::model::manifest::hash_piece;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn manifest_is_that_of_the_whole_content(
            pieces in 0usize..5,
            more in prop_oneof![Just(0), Just(1), 0usize..(256 << 10)],
            part in 1usize..400_000,
        ) {
            let content: Vec<u8> = (0..pieces * (256 << 10) + more).map(|i| (i % 251) as u8).collect();
            let mut builder = ManifestBuilder::new();
            content.chunks(part).for_each(|part| builder.update(part).unwrap());
            let layout = PieceLayout::new(content.len() as u64).unwrap();
            let hash = |piece| {
                let start = layout.offset(piece) as usize;
                hash_piece(layout, piece, &content[start..start + layout.len(piece)])
            };
            let expected = Manifest::from_hashes(layout, layout.pieces().map(hash).collect()).unwrap();
            prop_assert_eq!(builder.finish(), expected);
        }
    }

    #[test]
    fn byte_beyond_the_maximum_size_is_refused() {
        let piece_size = PieceLayout::new(MAX_FILE_SIZE).unwrap().piece_size();
        let complete = (MAX_FILE_SIZE / u64::from(piece_size)) as usize - 1;
        let mut builder = ManifestBuilder {
            size: MAX_FILE_SIZE - 1,
            piece_size,
            hashes: vec![[0; 32]; complete],
            current: blake3::Hasher::new(),
        };
        builder.update(&[0]).unwrap();
        assert_eq!(builder.update(&[0]), Err(FileTooLarge { size: MAX_FILE_SIZE + 1 }));
    }
}
