//! Changes to ZMTP frames (RFC 23), so that they mostly are some.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::{below, blind};

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Lengths of bodies, around the limits of the targets and that of commands.
const LENGTHS: [usize; 14] = [0, 1, 2, 39, 40, 41, 255, 256, 660, 699, 700, 701, 740, 741];
/// Lengths that are told and not true.
const LIES: [u64; 10] = [0, 1, 40, 41, 700, 701, 4096, 1 << 32, 1 << 63, u64::MAX];
/// One of so many frames lies about its length.
const LYING: u32 = 12;
/// Commands that mean something, or almost.
const COMMANDS: [&[u8]; 8] = [
    b"\x04PING\0\0x",
    b"\x04PING\0\0",
    b"\x04PING\0",
    b"\x04PONG\0\0x",
    b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER",
    b"\x05READY\x0bSocket-Type\0\0\0\x03REQ\x08Identity\0\0\0\0",
    b"\x05ERROR\x03why",
    b"",
];

#[derive(Debug, Clone)]
struct Frame {
    flags: u8,
    body: Vec<u8>,
}

fn read(mut rest: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((&flags, behind)) = rest.split_first() {
        let width = if flags & LONG == 0 { 1 } else { 8 };
        let (length, behind) = behind.split_at(width.min(behind.len()));
        let length = length.iter().fold(0, |length: u64, byte| length << 8 | u64::from(*byte));
        let (body, behind) = behind.split_at(usize::try_from(length).unwrap_or(usize::MAX).min(behind.len()));
        frames.push(Frame { flags, body: body.to_vec() });
        rest = behind;
    }
    frames
}

fn write(frames: &[Frame], into: &mut Vec<u8>, random: &mut SmallRng) {
    for Frame { flags, body } in frames {
        let lie = random.random_ratio(1, LYING);
        let told = if lie { *LIES.choose(random).unwrap_or(&0) } else { body.len() as u64 };
        let flags = if told > 255 { flags | LONG } else { *flags };
        into.push(flags);
        match flags & LONG {
            0 => into.push(told as u8),
            _ => into.extend_from_slice(&told.to_be_bytes()),
        }
        into.extend_from_slice(body);
    }
}

/// A changed copy; the first bytes are no frames.
pub(crate) fn changed(
    input: &[u8],
    other: &[u8],
    before: usize,
    changes: usize,
    random: &mut SmallRng,
) -> Vec<u8> {
    let (front, behind) = input.split_at(before.min(input.len()));
    let mut frames = read(behind);
    let others = read(other.get(before..).unwrap_or_default());
    for _ in 0..changes {
        change(&mut frames, &others, random);
    }
    let mut input = front.to_vec();
    if random.random_ratio(1, 8) {
        blind::change(&mut input, &[], random);
    }
    write(&frames, &mut input, random);
    input
}

fn change(frames: &mut Vec<Frame>, others: &[Frame], random: &mut SmallRng) {
    let (one, other) = (below(random, frames.len()), below(random, frames.len()));
    let donor = others.choose(random).cloned().unwrap_or(Frame { flags: 0, body: Vec::new() });
    let Some(frame) = frames.get_mut(one) else { return frames.push(donor) };
    match random.random_range(0..11) {
        0 => frame.flags ^= MORE,
        1 => frame.flags ^= LONG,
        2 => frame.flags ^= COMMAND,
        3 => frame.flags ^= 1 << random.random_range(0..8),
        4 => frame.body.resize(*LENGTHS.choose(random).unwrap_or(&0), random.random()),
        5 => {
            let body = COMMANDS.choose(random).map_or_else(Vec::new, |body| body.to_vec());
            frames.insert(other, Frame { flags: COMMAND, body });
        }
        6 => drop(frames.remove(one)),
        7 => frames.swap(one, other),
        8 => frames.insert(other, donor),
        9 => {
            let many = vec![frame.clone(); random.random_range(1..12)];
            frames.splice(other..other, many);
        }
        _ => blind::change(&mut frame.body, &[], random),
    }
}
