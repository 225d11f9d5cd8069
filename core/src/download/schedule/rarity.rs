//! The missing pieces, by how many of the providers that have only a part have them.
//!
//! Who has the whole file is not counted: it would raise every piece alike. One set of pieces for each number of
//! holders, so that a piece changes its place at once and the rarest of a provider's is found 64 at a time.

use super::bits::Bits;

#[derive(Debug, Default)]
struct Level {
    pieces: Bits,
    count: u32,
}

/// Which pieces are missing, and how rare each piece is.
#[derive(Debug)]
pub(super) struct Rarity {
    pieces: u32,
    holders: Vec<u32>,
    missing: Bits,
    missing_count: u32,
    levels: Vec<Level>,
}

impl Rarity {
    /// Nothing is missing of `pieces` pieces.
    pub(super) fn new(pieces: u32) -> Self {
        let holders = vec![0; pieces as usize];
        Self { pieces, holders, missing: Bits::empty(pieces), missing_count: 0, levels: Vec::new() }
    }

    pub(super) fn missing_count(&self) -> u32 {
        self.missing_count
    }

    pub(super) fn is_missing(&self, piece: u32) -> bool {
        self.missing.contains(piece)
    }

    /// Puts the piece among the missing, if it is not there.
    pub(super) fn put(&mut self, piece: u32) {
        if self.missing.insert(piece) {
            self.missing_count += 1;
            self.enter(piece);
        }
    }

    /// Takes the piece from the missing; whether it was there.
    pub(super) fn take(&mut self, piece: u32) -> bool {
        let was = self.missing.remove(piece);
        if was {
            self.missing_count -= 1;
            self.leave(piece);
        }
        was
    }

    pub(super) fn add_holder(&mut self, piece: u32) {
        self.change(piece, 1);
    }

    pub(super) fn remove_holder(&mut self, piece: u32) {
        self.change(piece, -1);
    }

    /// The rarest missing piece that is in `have` and not in `except`; `random` breaks ties.
    pub(super) fn rarest(
        &self,
        have: Option<&Bits>,
        except: Option<&Bits>,
        mut random: impl FnMut() -> u64,
    ) -> Option<u32> {
        let mut levels = self.levels.iter().filter(|level| level.count > 0);
        levels.find_map(|level| level.pieces.pick(have, except, random()))
    }

    /// A missing piece that nobody has who has only a part, and that is not in `except`.
    pub(super) fn unheld(&self, except: Option<&Bits>, random: u64) -> Option<u32> {
        let level = self.levels.first().filter(|level| level.count > 0)?;
        level.pieces.pick(None, except, random)
    }

    fn change(&mut self, piece: u32, by: i32) {
        let missing = self.is_missing(piece);
        if missing {
            self.leave(piece);
        }
        let holders = &mut self.holders[piece as usize];
        *holders = holders.saturating_add_signed(by);
        if missing {
            self.enter(piece);
        }
    }

    fn enter(&mut self, piece: u32) {
        let at = self.holders[piece as usize] as usize;
        while self.levels.len() <= at {
            self.levels.push(Level { pieces: Bits::empty(self.pieces), count: 0 });
        }
        self.levels[at].pieces.insert(piece);
        self.levels[at].count += 1;
    }

    fn leave(&mut self, piece: u32) {
        let level = &mut self.levels[self.holders[piece as usize] as usize];
        level.pieces.remove(piece);
        level.count -= 1;
    }
}
