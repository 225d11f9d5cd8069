//! Changes to bytes of which nothing is known.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

/// Bytes with a meaning of their own in one encoding or another.
const TELLING: [u8; 14] = [0, 1, 2, 0x17, 0x18, 0x1b, 0x20, 0x5f, 0x7f, 0x80, 0x9b, 0xa1, 0xf6, 0xff];

/// One change.
pub(crate) fn change(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut SmallRng) {
    let at = random.random_range(0..=input.len());
    let end = (at + random.random_range(1..9)).min(input.len());
    let length = input.len();
    match random.random_range(0..8) {
        0 if at < length => input[at] ^= 1 << random.random_range(0..8),
        1 if at < length => input[at] = *TELLING.choose(random).unwrap_or(&0),
        2 if at < length => input[at] = input[at].wrapping_add(*[1, 255].choose(random).unwrap_or(&1)),
        3 => input.insert(at, random.random()),
        4 => drop(input.drain(at..end)),
        5 => input.extend_from_within(at..end),
        6 => input.truncate(at),
        _ => {
            let other = others.choose(random).map_or(&[][..], Vec::as_slice);
            let from = random.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}
