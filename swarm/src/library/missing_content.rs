//! A content store that is empty although the index lists content in it: the content was lost, or another store was opened
//! in its place.

use super::content::ContentStore;
use super::error::Result;
use super::layout::{self, FILES, Record};
use super::load::PAGE;
use super::state::LibraryState;
use enjambre_core::{Batch, Durability, FileKind, KeyRange, Storage, StorageExt};

/// The size in bytes from which a batch is committed.
const BATCH: usize = 1 << 20;

/// Returns whether the store is empty although the index lists content in it.
pub(super) async fn is_content_missing(state: &LibraryState, content: &ContentStore) -> Result<bool> {
    let place = content.place();
    let is_stored = |record: &Record| record.place == place && record.size > 0;
    let is_claimed = state.slots.values().any(|slot| slot.have > 0 && is_stored(&slot.record));
    Ok(is_claimed && content.is_empty().await?)
}

/// Records durably that the store contains no content, after [`ContentMissing`](super::error::LibraryError::ContentMissing).
/// Then the library opens, and the content can be downloaded or published again.
pub async fn drop_content_claims(index: &dyn Storage, content: &ContentStore) -> Result<()> {
    let mut batch = Batch::new();
    let mut files = index.entries(FILES, KeyRange::all(), PAGE);
    while let Some((key, value)) = files.next().await? {
        let (id, _) = layout::split_id(FILES, &key)?;
        let record = Record::decode(&id, &value)?;
        // Not linked files, nor content in a store of the other kind.
        if record.place != content.place() || record.size == 0 {
            continue;
        }
        if record.complete && record.kind == FileKind::Collection {
            let name = record.names.last().map(|name| tracing::field::display(&name.name));
            tracing::warn!(%id, name, "list of the files of a directory missing; publish or get the directory again");
        }
        layout::delete_bitmaps(&mut batch, &id, record.layout()?);
        batch.put(FILES, key, Record { complete: false, ..record }.encode());
        if batch.size() >= BATCH {
            index.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
        }
    }
    Ok(index.commit(batch, Durability::Durable).await?)
}
