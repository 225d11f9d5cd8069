//! The missing pieces, grouped by the number of partial providers that have them.
//!
//! Complete providers are not counted, since they have every piece. Each number of holders has its own set of pieces, so
//! that a piece moves in constant time and the rarest piece of a provider is found 64 pieces at a time.

use super::bits::Bits;

#[derive(Debug, Default)]
struct Level {
    pieces: Bits,
    count: u32,
}

/// The missing pieces and the rarity of each piece.
#[derive(Debug)]
pub(super) struct Rarity {
    pieces: u32,
    holders: Vec<u32>,
    missing: Bits,
    missing_count: u32,
    levels: Vec<Level>,
}

impl Rarity {
    /// Creates an empty set of missing pieces for a file of `pieces` pieces.
    pub(super) fn new(pieces: u32) -> Self {
        let holders = vec![0; pieces as usize];
        Self { pieces, holders, missing: Bits::empty(pieces), missing_count: 0, levels: Vec::new() }
    }

    pub(super) fn missing_count(&self) -> u32 {
        self.missing_count
    }

    /// Adds a missing piece.
    pub(super) fn insert(&mut self, piece: u32) {
        if self.missing.insert(piece) {
            self.missing_count += 1;
            self.add_to_level(piece);
        }
    }

    /// Removes a missing piece.
    pub(super) fn remove(&mut self, piece: u32) {
        if self.missing.remove(piece) {
            self.missing_count -= 1;
            self.remove_from_level(piece);
        }
    }

    pub(super) fn add_holder(&mut self, piece: u32) {
        self.change_holders(piece, 1);
    }

    pub(super) fn remove_holder(&mut self, piece: u32) {
        self.change_holders(piece, -1);
    }

    /// Returns the rarest missing piece that is in `have` and not in `except`; `random` breaks ties.
    pub(super) fn rarest(
        &self,
        have: Option<&Bits>,
        except: Option<&Bits>,
        mut random: impl FnMut() -> u64,
    ) -> Option<u32> {
        let mut levels = self.levels.iter().filter(|level| level.count > 0);
        levels.find_map(|level| level.pieces.pick(have, except, random()))
    }

    /// Returns a missing piece that no partial provider has and that is not in `except`.
    pub(super) fn unheld(&self, except: Option<&Bits>, random: u64) -> Option<u32> {
        let level = self.levels.first().filter(|level| level.count > 0)?;
        level.pieces.pick(None, except, random)
    }

    fn change_holders(&mut self, piece: u32, by: i32) {
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
            self.levels.push(Level { pieces: Bits::empty(self.pieces), count: 0 });
        }
        self.levels[at].pieces.insert(piece);
        self.levels[at].count += 1;
    }

    fn remove_from_level(&mut self, piece: u32) {
        let level = &mut self.levels[self.holders[piece as usize] as usize];
        level.pieces.remove(piece);
        level.count -= 1;
    }
}
