//! The format of a record: length (4 bytes), BLAKE3 hash (32 bytes), then the writes of one group.
//!
//! A put is the byte 1, space, key and value; a delete is the byte 0, space and key. Each field has a length prefix of
//! 4 bytes.

use bytes::{Buf, BufMut, Bytes};
use enjambre_core::{Key, Space, Write};

const HEADER: usize = 4 + 32;

/// Encodes a group of writes as a record.
pub(crate) fn encode(writes: &[Write]) -> Vec<u8> {
    let mut record = vec![0; HEADER];
    for write in writes {
        let (space, key) = write.target();
        record.put_u8(write.value().is_some().into());
        for field in
            [space.name().as_bytes(), key.as_bytes()].into_iter().chain(write.value().map(|value| &value[..]))
        {
            record.put_u32(field.len() as u32);
            record.put_slice(field);
        }
    }
    let body = &record[HEADER..];
    let (length, hash) = ((body.len() as u32).to_be_bytes(), blake3::hash(body));
    record[..4].copy_from_slice(&length);
    record[4..HEADER].copy_from_slice(hash.as_bytes());
    record
}

/// Decodes the record at the start of `bytes`. Returns its writes and the remaining bytes, or `None` if the record is
/// incomplete or damaged.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Vec<Write>, &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let (mut body, rest) = rest.split_at_checked((&header[..4]).get_u32() as usize)?;
    if blake3::hash(body).as_bytes() != &header[4..] || body.is_empty() {
        return None;
    }
    let mut writes = Vec::new();
    while !body.is_empty() {
        let is_put = body.try_get_u8().ok()? == 1;
        let space = Space::parse(str::from_utf8(field(&mut body)?).ok()?)?;
        let key = Key::new(field(&mut body)?.to_vec()).ok()?;
        writes.push(if is_put {
            Write::Put(space, key, Bytes::copy_from_slice(field(&mut body)?))
        } else {
            Write::Delete(space, key)
        });
    }
    Some((writes, rest))
}

fn field<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = body.try_get_u32().ok()? as usize;
    body.split_off(..length)
}
