//! Decoding of CBOR (RFC 8949); reader and writer for the heads of items (section 3), for encodings that are frequent or
//! deterministic.

use std::io;

use serde::de::DeserializeOwned;

/// Major type 0, an unsigned integer.
pub const UINT: u8 = 0;
/// Major type 2, a byte string.
pub const BYTES: u8 = 2;
/// Major type 3, a text string.
pub const TEXT: u8 = 3;
/// Major type 4, an array.
pub const ARRAY: u8 = 4;

/// Decodes and consumes an item with at most this nesting depth of maps and arrays. Allocates a declared length only as the
/// bytes are read.
///
/// # Errors
/// The item is malformed or not a valid `T`.
// All callers use one type of reader, because serde's code is compiled for each type of reader and `T`.
pub fn decode<T: DeserializeOwned>(
    rest: &mut &[u8],
    nesting: usize,
) -> Result<T, ciborium::de::Error<io::Error>> {
    ciborium::de::from_reader_with_recursion_limit(rest, nesting)
}

/// Consumes the head of an item of the given major type and returns its value or length.
pub fn take_head(rest: &mut &[u8], major: u8) -> Option<u64> {
    let (first, tail) = rest.split_first()?;
    if first >> 5 != major {
        return None;
    }
    let length = match first & 0x1f {
        value @ 0..=23 => {
            *rest = tail;
            return Some(u64::from(value));
        }
        size @ 24..=27 => 1 << (size - 24),
        _ => return None,
    };
    let (number, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(number.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Consumes the expected bytes.
pub fn take(rest: &mut &[u8], expected: &[u8]) -> Option<()> {
    *rest = rest.strip_prefix(expected)?;
    Some(())
}

/// Consumes `N` bytes.
pub fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*array)
}

/// Returns the length in bytes of the shortest head with this value.
pub const fn head_len(value: u64) -> usize {
    match value {
        0..24 => 1,
        24..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

/// Writes the shortest head of an item with this major type and value or length.
pub fn put_head(bytes: &mut Vec<u8>, major: u8, value: u64) {
    let number = value.to_be_bytes();
    let (info, argument) = match head_len(value) {
        1 => (value as u8, &number[8..]),
        2 => (24, &number[7..]),
        3 => (25, &number[6..]),
        5 => (26, &number[4..]),
        _ => (27, &number[..]),
    };
    bytes.push(major << 5 | info);
    bytes.extend_from_slice(argument);
}
