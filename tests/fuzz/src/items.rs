//! Changes to what says how long its parts are, so that they are mostly as long as it says.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::below;
use crate::form::{Parts, changed_cbor};

/// How parts and their lengths lie in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How many bytes there are before the lengths.
    pub before: usize,
    /// In how many bytes each part says how long it is, the highest first; the parts follow in their order.
    pub lengths: &'static [usize],
    /// Whether all that is behind them is one more part. Else there may be another item.
    pub rest: bool,
}

/// Lengths that may be told and not true.
const LIES: [u64; 16] =
    [0, 1, 39, 40, 41, 127, 255, 256, 299, 300, 301, 8999, 9000, 9001, 0x7fff_ffff, 0xffff_ffff];
/// One of so many items lies about a length.
const LYING: u32 = 6;

#[derive(Debug, Clone, Default)]
pub(crate) struct Item {
    before: Vec<u8>,
    pub(crate) parts: Vec<Vec<u8>>,
}

/// An input, taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Items {
    layout: Layout,
    pub(crate) items: Vec<Item>,
}

/// Takes so many bytes off the front, or all that there are.
fn take(rest: &mut &[u8], length: usize) -> Vec<u8> {
    let (front, behind) = rest.split_at(length.min(rest.len()));
    *rest = behind;
    front.to_vec()
}

impl Items {
    pub(crate) fn read(layout: Layout, input: &[u8]) -> Self {
        let (mut rest, mut items) = (input, Vec::new());
        while !rest.is_empty() {
            let before = take(&mut rest, layout.before);
            let mut length = |width: &usize| {
                take(&mut rest, *width).iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
            };
            let lengths: Vec<usize> = layout.lengths.iter().map(&mut length).collect();
            let mut parts: Vec<_> = lengths.into_iter().map(|length| take(&mut rest, length)).collect();
            if layout.rest {
                let all = rest.len();
                parts.push(take(&mut rest, all));
            }
            items.push(Item { before, parts });
        }
        Self { layout, items }
    }

    /// The input; one of them may lie.
    pub(crate) fn write(&self, random: &mut SmallRng) -> Vec<u8> {
        let mut input = Vec::new();
        for Item { before, parts } in &self.items {
            input.extend_from_slice(before);
            for (width, part) in self.layout.lengths.iter().zip(parts) {
                let lie = random.random_ratio(1, LYING);
                let told = if lie { *LIES.choose(random).unwrap_or(&0) } else { part.len() as u64 };
                input.extend_from_slice(&told.to_be_bytes()[8 - width..]);
            }
            for part in parts {
                input.extend_from_slice(part);
            }
        }
        input
    }

    /// One change, which may bring something of another input in.
    pub(crate) fn change(&mut self, other: &[u8], parts: &Parts, random: &mut SmallRng) {
        let others = Self::read(self.layout, other).items;
        let (one, two) = (below(random, self.items.len()), below(random, self.items.len()));
        let donor = others.choose(random).cloned().unwrap_or_default();
        let Some(item) = self.items.get_mut(one) else {
            self.items.push(donor);
            return;
        };
        let part = below(random, item.parts.len());
        match random.random_range(0..14) {
            0 if !self.layout.rest => drop(self.items.remove(one)),
            1 if !self.layout.rest => self.items.swap(one, two),
            2 if !self.layout.rest => self.items.insert(two, donor),
            3 if !self.layout.rest => {
                let many = vec![item.clone(); random.random_range(1..8)];
                self.items.splice(two..two, many);
            }
            4 if !item.before.is_empty() => {
                let at = below(random, item.before.len());
                item.before[at] = random.random();
            }
            5 | 6 => {
                // Of the same kind, so that keys come to other values.
                if let (Some(old), Some(new)) = (item.parts.get_mut(part), donor.parts.get(part)) {
                    old.clone_from(new);
                }
            }
            7 => {
                if let Some(part) = item.parts.get_mut(part) {
                    let length = *[0, 1, 8, 16, 32, 33, 40, 64, 300, 700].choose(random).unwrap_or(&0);
                    part.resize(length, random.random());
                }
            }
            _ => {
                if let Some(part) = item.parts.get_mut(part) {
                    *part = changed_cbor(part, 1, parts, &[], random);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_taken_apart_by_its_layout() {
        let layout = Layout { before: 1, lengths: &[1, 2], rest: false };
        let input = [7, 1, 0, 2, b'a', b'b', b'c', 8, 0, 0, 9];
        let items = Items::read(layout, &input).items;
        assert_eq!(items.len(), 2);
        assert_eq!(
            (&items[0].before[..], &items[0].parts[..]),
            (&[7][..], &[vec![b'a'], b"bc".to_vec()][..])
        );
        assert_eq!(items[1].parts, [vec![], b"".to_vec()]);
        let whole = Layout { rest: true, ..layout };
        let items = Items::read(whole, &input).items;
        assert_eq!((items.len(), &items[0].parts[2][..]), (1, &[8, 0, 0, 9][..]));
    }
}
