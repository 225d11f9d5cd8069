//! A content store that is empty although the index refers to content in it: the content was lost, or another store was
//! opened in its place.

use super::error::Result;
use super::layout::{self, FILES, Record};
use super::library::Library;
use super::load::PAGE;
use enjambre_core::{Batch, Durability, KeyRange, StorageExt};

impl Library {
    /// Returns whether the content store is empty although files are stored in it.
    pub async fn is_content_missing(&self) -> Result<bool> {
        let mut stored = false;
        self.visit(|_, slot| stored |= slot.have > 0 && slot.record.place.path().is_none());
        Ok(stored && self.inner.content.is_empty().await?)
    }

    /// Records durably that the content store contains no pieces, so that they are downloaded again. The library has to be
    /// closed then, and opened again.
    pub async fn drop_content_claims(&self) -> Result<()> {
        let inner = &self.inner;
        let mut files = inner.index.pages(FILES, KeyRange::all(), PAGE);
        while let Some(page) = files.next().await? {
            let mut batch = Batch::new();
            for (key, value) in page {
                let (id, _) = layout::split_id(FILES, &key)?;
                let record = Record::decode(&id, &value)?;
                if record.place.path().is_none() && record.size > 0 {
                    layout::delete_bitmaps(&mut batch, &id, record.layout()?);
                    // It may have been in a store of the other kind.
                    let record = Record { complete: false, place: inner.content.place(), ..record };
                    batch.put(FILES, key, record.encode());
                }
            }
            inner.commit_in_parts(batch, Durability::Buffered).await?;
        }
        Ok(inner.index.sync().await?)
    }
}
