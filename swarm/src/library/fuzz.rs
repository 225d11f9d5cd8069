//! Fuzz targets for a damaged index.

use bytes::Bytes;

use super::describe::describe;
use super::layout::{self, ACKS, FILES, HAVE, META, Record, SPACES};
use enjambre_core::{Bitmap, FileId, Key, PieceLayout};

/// An entry of any space: a byte for the space, a byte for the length of the key, then key and value.
pub(crate) fn records(data: &[u8]) {
    let [space, length, rest @ ..] = data else { return };
    let space = SPACES[usize::from(*space) % SPACES.len()];
    let (key, value) = rest.split_at(rest.len().min((*length).into()));
    let Ok(key) = Key::new(key.to_vec()) else { return };
    let _ = describe(space, &key, value);
    if let Ok((id, page)) = layout::split_page(HAVE, &key) {
        assert_eq!(layout::page_key(&id, page), key);
    }
    if let Ok((member, collection)) = layout::split_member(&key) {
        assert_eq!(layout::member_key(&member, &collection), key);
    }
    if let Ok(ack) = layout::split_ack(&key) {
        assert_eq!(layout::ack_key(&ack), key);
    }
    if space != META && space != ACKS {
        record(value);
    }
    if space == FILES {
        bits(value);
    }
}

fn record(value: &[u8]) {
    let id = FileId::from_bytes([1; 32]);
    let Ok(record) = Record::decode(&id, value) else { return };
    let again = Record::decode(&id, &record.encode()).expect("the record was just encoded");
    assert_eq!(again, record);
    let _ = record.layout();
    assert_eq!(record.place.path().is_some(), record.place.root_and_rel().is_some());
}

/// A number of pieces with 2 bytes, and the pages of a bitmap.
fn bits(value: &[u8]) {
    let Some((pieces, rest)) = value.split_first_chunk::<2>() else { return };
    let layout = PieceLayout::new(u64::from(u16::from_le_bytes(*pieces)) << 18).expect("a small file");
    let pages: Vec<_> =
        rest.chunks(layout::BITMAP_PAGE).map(|page| Some(Bytes::copy_from_slice(page))).collect();
    let bitmap = layout::bitmap_from_pages(layout, &pages);
    assert_eq!(Bitmap::from_bytes(layout, bitmap.as_bytes()), Ok(bitmap));
}
