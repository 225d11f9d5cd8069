//! A content store that is empty although the index lists content in it: the content was lost, or another store was opened
//! in its place. Checked before the library is opened, because recovery changes the index and creates files.

use super::content::ContentStore;
use super::error::Result;
use super::layout::{self, FILES, HAVE, Record};
use super::load::PAGE;
use enjambre_core::{Batch, Durability, FileId, Key, KeyRange, Storage, StorageExt};

/// The size in bytes from which a batch is committed.
const BATCH: usize = 1 << 20;

/// Returns whether the store is empty although the index lists content in it.
pub async fn is_content_missing(index: &dyn Storage, content: &ContentStore) -> Result<bool> {
    if !content.is_empty().await? {
        return Ok(false);
    }
    let mut files = index.entries(FILES, KeyRange::all(), PAGE);
    while let Some((key, value)) = files.next().await? {
        let Some((id, record)) = stored(content, &key, &value)? else { continue };
        let mut have = index.entries(HAVE, KeyRange::prefix(id.as_bytes()), PAGE);
        let mut is_claimed = record.complete;
        while !is_claimed && let Some((_, page)) = have.next().await? {
            is_claimed = page.iter().any(|byte| *byte != 0);
        }
        if is_claimed {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Records durably that the store contains no content, so that it is downloaded again on request.
pub async fn drop_content_claims(index: &dyn Storage, content: &ContentStore) -> Result<()> {
    let mut batch = Batch::new();
    let mut files = index.entries(FILES, KeyRange::all(), PAGE);
    while let Some((key, value)) = files.next().await? {
        let Some((id, record)) = stored(content, &key, &value)? else { continue };
        layout::delete_bitmaps(&mut batch, &id, record.layout()?);
        batch.put(FILES, key, Record { complete: false, ..record }.encode());
        if batch.size() >= BATCH {
            index.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
        }
    }
    Ok(index.commit(batch, Durability::Durable).await?)
}

/// Decodes a record if its content is not empty and its place is this store, not a linked file or a store of the other kind.
fn stored(content: &ContentStore, key: &Key, value: &[u8]) -> Result<Option<(FileId, Record)>> {
    let (id, _) = layout::split_id(FILES, key)?;
    let record = Record::decode(&id, value)?;
    Ok((record.place == content.place() && record.size > 0).then_some((id, record)))
}
