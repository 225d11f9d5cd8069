//! The missing pieces, grouped by the number of partial providers that have them.
//!
//! Complete providers are not counted, since they have every piece. Each number of holders has its own set of pieces, so
//! that a piece moves in constant time and the rarest piece of a provider is found 64 pieces at a time.

use super::bits::Bits;

/// The missing pieces and the rarity of each piece.
#[derive(Debug)]
pub(super) struct Rarity {
    pieces: u32,
    holders: Vec<u32>,
    missing: Bits,
    /// The missing pieces by their number of holders.
    levels: Vec<Bits>,
}

impl Rarity {
    /// Creates an empty set of missing pieces for a file of `pieces` pieces.
    pub(super) fn new(pieces: u32) -> Self {
        Self { pieces, holders: vec![0; pieces as usize], missing: Bits::empty(pieces), levels: Vec::new() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }

    pub(super) fn contains(&self, piece: u32) -> bool {
        self.missing.contains(piece)
    }

    pub(super) fn insert(&mut self, piece: u32) {
        if self.missing.insert(piece) {
            self.add_to_level(piece);
        }
    }

    pub(super) fn remove(&mut self, piece: u32) {
        if self.missing.remove(piece) {
            self.remove_from_level(piece);
        }
    }

    /// Returns the rarest missing piece that is in `have` and not in `except`; `random` breaks ties.
    pub(super) fn rarest(
        &self,
        have: Option<&Bits>,
        except: Option<&Bits>,
        mut random: impl FnMut() -> u64,
    ) -> Option<u32> {
        let mut levels = self.levels.iter().filter(|level| !level.is_empty());
        levels.find_map(|level| level.pick(have, except, random()))
    }

    /// Returns a missing piece that no partial provider has and that is not in `except`.
    pub(super) fn unheld(&self, except: Option<&Bits>, random: u64) -> Option<u32> {
        self.levels.first().filter(|level| !level.is_empty())?.pick(None, except, random)
    }

    /// Adds `by` to the number of partial providers that have the piece.
    pub(super) fn change_holders(&mut self, piece: u32, by: i32) {
        let missing = self.missing.contains(piece);
        if missing {
            self.remove_from_level(piece);
        }
        let holders = &mut self.holders[piece as usize];
        *holders = holders.saturating_add_signed(by);
        if missing {
            self.add_to_level(piece);
        }
    }

    fn add_to_level(&mut self, piece: u32) {
        let at = self.holders[piece as usize] as usize;
        while self.levels.len() <= at {
            self.levels.push(Bits::empty(self.pieces));
        }
        self.levels[at].insert(piece);
    }

    fn remove_from_level(&mut self, piece: u32) {
        self.levels[self.holders[piece as usize] as usize].remove(piece);
    }
}
