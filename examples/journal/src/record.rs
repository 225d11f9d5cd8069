//! How a group of writes lies in the file: length (4 bytes), BLAKE3 hash (32), and for each write a 1 with space, key and
//! value, or a 0 with space and key, each behind its length.

use bytes::{Buf, BufMut, Bytes};
use enjambre_core::storage::value::{Key, Space, Write};

const HEAD: usize = 4 + 32;

/// The bytes of a record.
pub(crate) fn encode(writes: &[Write]) -> Vec<u8> {
    let mut record = vec![0; HEAD];
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
    let body = &record[HEAD..];
    let (length, hash) = ((body.len() as u32).to_be_bytes(), blake3::hash(body));
    record[..4].copy_from_slice(&length);
    record[4..HEAD].copy_from_slice(hash.as_bytes());
    record
}

/// The writes of the record at the beginning of `bytes`, and what is behind it; `None` if it is not whole.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Vec<Write>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (mut body, rest) = rest.split_at_checked((&head[..4]).get_u32() as usize)?;
    if blake3::hash(body).as_bytes() != &head[4..] || body.is_empty() {
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
