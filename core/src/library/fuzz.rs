//! Fuzz targets: what a damaged index gives back.

use bytes::Bytes;

use super::describe::describe;
use super::formats;
use super::layout::{self, ACKS, FILES, FORMAT, HAVE, META, Record, SPACES};
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::PieceLayout;
use crate::storage::value::Key;

/// Keys and values of every space: a byte for the space, one for the length of the key, then key and value.
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
    if let Ok((catalogue, id, name)) = layout::split_ack(&key) {
        assert_eq!(layout::ack_key(&catalogue, &id, &name), key);
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
    let again = Record::decode(&id, &record.encode()).expect("it was just written");
    assert_eq!(again, record);
    let _ = record.layout();
    assert_eq!(record.place.path().is_some(), record.place.root_and_rel().is_some());
}

/// Two bytes of a number of pieces, and the records of a bitmap.
fn bits(value: &[u8]) {
    let Some((pieces, rest)) = value.split_first_chunk::<2>() else { return };
    let layout = PieceLayout::new(u64::from(u16::from_le_bytes(*pieces)) << 18).expect("a small file");
    let pages: Vec<_> =
        rest.chunks(layout::BITMAP_PAGE).map(|page| Some(Bytes::copy_from_slice(page))).collect();
    let bitmap = layout::bitmap_from_pages(layout, &pages);
    assert_eq!(Bitmap::from_bytes(layout, bitmap.as_bytes()), Ok(bitmap));
}

/// The record of the format.
pub(crate) fn mark(data: &[u8]) {
    let formats = formats::formats();
    let newest = formats.is_newest(data);
    let Ok(mark) = (formats.read)(data) else {
        assert!(newest.is_err());
        return;
    };
    assert!(!matches!(newest, Ok(true)) || mark.format == FORMAT && mark.note.is_none());
    assert_eq!((formats.write)(&mark), data);
}
