//! The heads of CBOR items (RFC 8949, section 3), read and written without a serializer, for the few messages of which
//! there are many.

/// The major types that are read and written here.
pub(crate) const UINT: u8 = 0;
pub(crate) const BYTES: u8 = 2;
pub(crate) const TEXT: u8 = 3;
pub(crate) const ARRAY: u8 = 4;

/// Takes the head of an item of this type off the front: its value or length.
pub(crate) fn take_head(rest: &mut &[u8], kind: u8) -> Option<u64> {
    let (first, behind) = rest.split_first()?;
    if first >> 5 != kind {
        return None;
    }
    let length = match first & 0x1f {
        value @ 0..=23 => {
            *rest = behind;
            return Some(u64::from(value));
        }
        size @ 24..=27 => 1 << (size - 24),
        _ => return None,
    };
    let (number, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    Some(number.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Takes these bytes off the front.
pub(crate) fn take(rest: &mut &[u8], expected: &[u8]) -> Option<()> {
    *rest = rest.strip_prefix(expected)?;
    Some(())
}

/// Takes so many bytes off the front.
pub(crate) fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*array)
}

/// Writes the head of an item, in as few bytes as it takes.
pub(crate) fn put_head(bytes: &mut Vec<u8>, kind: u8, value: u64) {
    let kind = kind << 5;
    match value {
        0..=23 => bytes.push(kind | value as u8),
        24..=0xff => bytes.extend([kind | 24, value as u8]),
        0x100..=0xffff => {
            bytes.push(kind | 25);
            bytes.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            bytes.push(kind | 26);
            bytes.extend((value as u32).to_be_bytes());
        }
        _ => {
            bytes.push(kind | 27);
            bytes.extend(value.to_be_bytes());
        }
    }
}
