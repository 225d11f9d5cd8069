//! Sets of pieces as machine words, which are compared 64 pieces at a time.

use enjambre_core::Bitmap;

/// A set of pieces of one layout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    count: u32,
}

impl Bits {
    /// An empty set for a file of `count` pieces.
    pub(super) fn empty(count: u32) -> Self {
        Self { words: vec![0; count.div_ceil(64) as usize], count: 0 }
    }

    pub(super) fn from_bitmap(bitmap: &Bitmap) -> Self {
        let word = |bytes: &[u8]| {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(padded)
        };
        Self { words: bitmap.as_bytes().chunks(8).map(word).collect(), count: bitmap.count() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn contains(&self, piece: u32) -> bool {
        self.words.get(piece as usize / 64).is_some_and(|word| word >> (piece % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, piece: u32) -> bool {
        let word = &mut self.words[piece as usize / 64];
        let bit = 1 << (piece % 64);
        let new = *word & bit == 0;
        *word |= bit;
        // Not `count += u32::from(new)`, which rustc 1.95 compiles incorrectly at opt-level 3.
        if new {
            self.count += 1;
        }
        new
    }

    pub(super) fn remove(&mut self, piece: u32) -> bool {
        let word = &mut self.words[piece as usize / 64];
        let bit = 1 << (piece % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        if was {
            self.count -= 1;
        }
        was
    }

    pub(super) fn extend(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// Whether both sets have a piece in common.
    pub(super) fn intersects(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// Returns the pieces that are in exactly one of the two sets.
    pub(super) fn symmetric_difference(&self, other: &Self) -> impl Iterator<Item = u32> {
        let words = self.words.iter().zip(&other.words).enumerate();
        words.flat_map(|(at, (a, b))| Ones(a ^ b).map(move |bit| at as u32 * 64 + bit))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let words = self.words.iter().enumerate();
        words.flat_map(|(at, &word)| Ones(word).map(move |bit| at as u32 * 64 + bit))
    }

    /// Returns a piece that is in this set and in `also` but not in `except`: the first one after a position that `random`
    /// determines.
    pub(super) fn pick(&self, also: Option<&Self>, except: Option<&Self>, random: u64) -> Option<u32> {
        let count = self.words.len();
        let start = usize::try_from(random >> 32).unwrap_or_default() % count.max(1);
        let rotation = (random % 64) as u32;
        (start..count).chain(0..start).find_map(|at| {
            let mut word = self.words[at];
            if let Some(also) = also {
                word &= also.words[at];
            }
            if let Some(except) = except {
                word &= !except.words[at];
            }
            let bit = (word != 0).then(|| (word.rotate_right(rotation).trailing_zeros() + rotation) % 64)?;
            Some(at as u32 * 64 + bit)
        })
    }
}

/// The positions of the set bits of a word.
struct Ones(u64);

impl Iterator for Ones {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (bit < 64).then_some(bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(of: &BTreeSet<u32>) -> Bits {
        let mut bits = Bits::empty(200);
        for &piece in of {
            bits.insert(piece);
        }
        bits
    }

    proptest! {
        #[test]
        fn bits_behave_like_btree_set(
            a in prop::collection::btree_set(0u32..200, 0..60),
            b in prop::collection::btree_set(0u32..200, 0..60),
            c in prop::collection::btree_set(0u32..200, 0..60),
            random in any::<u64>(),
        ) {
            let (x, y, z) = (set(&a), set(&b), set(&c));
            prop_assert_eq!(x.is_empty(), a.is_empty());
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(
                x.symmetric_difference(&y).collect::<BTreeSet<_>>(),
                a.symmetric_difference(&b).copied().collect::<BTreeSet<_>>()
            );
            prop_assert_eq!(x.intersects(&y), a.intersection(&b).next().is_some());
            let allowed: BTreeSet<u32> = a.iter().filter(|p| b.contains(p) && !c.contains(p)).copied().collect();
            match x.pick(Some(&y), Some(&z), random) {
                Some(piece) => prop_assert!(allowed.contains(&piece)),
                None => prop_assert!(allowed.is_empty()),
            }
        }
    }
}
