//! Reading the index: its format version, all of it into memory, and the manifest and the bitmaps of a file.

use super::error::{LibraryError, Result};
use super::layout::{self, ACKS, FILES, FORMAT, HASHES, HAVE, MEMBERS, META, Record, TOMBS, format_key};
use super::state::{LibraryState, Slot, Tombstone};
use enjambre_core::storage::format::check_version;
use enjambre_core::{
    Batch, Bitmap, Durability, FileId, Key, KeyRange, Manifest, PieceLayout, Space, Storage, StorageError,
    StorageExt,
};

pub(super) const PAGE: usize = 1000;
/// The number of records of one file that are read at once: 2 MiB of hashes.
const RECORDS: usize = 64;

/// Returns the format version of the index, or `None` if it is empty.
///
/// # Errors
/// [`StorageError::NewerFormat`] if only a newer program can read the index, [`StorageError::Corrupt`] if the
/// version is invalid.
pub async fn stored_format(index: &dyn Storage) -> Result<Option<u64>, StorageError> {
    let stored = index.get(META, &[format_key()]).await?;
    let Some(stored) = stored.into_iter().next().flatten() else { return Ok(None) };
    let malformed = |_| StorageError::corrupt("the format version of the library");
    let version = u64::from_be_bytes(stored[..].try_into().map_err(malformed)?);
    check_version("the library", version, FORMAT)?;
    Ok(Some(version))
}

/// Checks the format version of the index, or writes it to an empty one.
pub(super) async fn check_or_write_format(index: &dyn Storage) -> Result<(), StorageError> {
    if stored_format(index).await?.is_some() {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.put(META, format_key(), FORMAT.to_be_bytes().to_vec());
    index.commit(batch, Durability::Durable).await
}

pub(super) async fn load_state(index: &dyn Storage) -> Result<LibraryState> {
    let mut state = LibraryState::default();
    let all = |space| index.entries(space, KeyRange::all(), PAGE);
    let mut files = all(FILES);
    while let Some((key, value)) = files.next().await? {
        let (id, _) = layout::split_id(FILES, &key)?;
        let record = Record::decode(&id, &value)?;
        let have = if record.complete { record.layout()?.count() } else { 0 };
        state.insert(id, Slot::new(record, true, have));
    }
    let mut have = all(HAVE);
    while let Some((key, value)) = have.next().await? {
        let (id, _) = layout::split_page(HAVE, &key)?;
        if let Some(slot) = state.slots.get_mut(&id).filter(|slot| !slot.record.complete) {
            slot.have += value.iter().map(|byte| byte.count_ones()).sum::<u32>();
        }
    }
    let mut members = all(MEMBERS);
    while let Some((key, _)) = members.next().await? {
        state.members.insert(layout::split_member(&key)?);
    }
    let mut tombstones = all(TOMBS);
    while let Some((key, value)) = tombstones.next().await? {
        let (id, _) = layout::split_id(TOMBS, &key)?;
        let tombstone = Tombstone { record: Record::decode(&id, &value)?, uncertain: None };
        state.tombstones.insert(id, tombstone);
    }
    let mut acks = all(ACKS);
    while let Some((key, value)) = acks.next().await? {
        state.acks.insert(layout::split_ack(&key)?, layout::read_ack(&value)?);
    }
    Ok(state)
}

/// Loads the manifest of a file and verifies it against the id.
pub(super) async fn load_manifest(index: &dyn Storage, id: &FileId, layout: PieceLayout) -> Result<Manifest> {
    let pages = load_pages(index, HASHES, id, layout::hash_pages(layout)).await?;
    let mut hashes = Vec::with_capacity(layout.count() as usize);
    for page in pages.iter().flatten() {
        hashes.extend_from_slice(page.as_chunks::<32>().0);
    }
    if layout.count() == 1 {
        hashes.push(*id.as_bytes());
    }
    Manifest::verify(*id, layout, hashes).map_err(|error| {
        LibraryError::Storage(StorageError::Corrupt {
            what: format!("the piece hashes of {id} in the library"),
            source: Some(error.into()),
        })
    })
}

pub(super) async fn load_bitmap(
    index: &dyn Storage,
    space: Space,
    id: &FileId,
    layout: PieceLayout,
) -> Result<Bitmap> {
    let pages = load_pages(index, space, id, layout::bitmap_pages(layout)).await?;
    Ok(layout::bitmap_from_pages(layout, &pages))
}

async fn load_pages(
    index: &dyn Storage,
    space: Space,
    id: &FileId,
    count: usize,
) -> Result<Vec<Option<bytes::Bytes>>> {
    let keys: Vec<Key> = (0..count).map(|page| layout::page_key(id, page)).collect();
    let mut pages = Vec::with_capacity(count);
    for keys in keys.chunks(RECORDS) {
        pages.extend(index.get(space, keys).await?);
    }
    Ok(pages)
}
