//! The formats of the index of a library. There was one so far.

use bytes::Bytes;

use super::layout::{self, FORMAT, META};
use crate::format::{Format, Mark};
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};

/// The formats of a library: 8 bytes of a number, and behind it how far a step away from it is.
pub(super) fn formats() -> Format<'static> {
    Format {
        what: "library",
        space: META,
        key: layout::format_key(),
        newest: FORMAT,
        steps: &[],
        read,
        write,
    }
}

fn read(bytes: &[u8]) -> Result<Mark, StorageError> {
    let (format, note) = bytes
        .split_first_chunk()
        .ok_or_else(|| StorageError::corrupt("the format version of the library"))?;
    let note = (!note.is_empty()).then(|| Bytes::copy_from_slice(note));
    Ok(Mark { format: u64::from_be_bytes(*format), note })
}

fn write(Mark { format, note }: &Mark) -> Bytes {
    [&format.to_be_bytes(), note.as_deref().unwrap_or_default()].concat().into()
}

/// The format of the library in an index; none where there is no library. An error where only a newer program can read it.
pub async fn stored_format(index: &dyn Storage) -> Result<Option<u64>, StorageError> {
    formats().of(index).await
}

/// Notes the format of a new library, brings an old one to the newest, and refuses one that only a newer program knows.
pub(super) async fn prepare(index: &dyn Storage) -> Result<(), StorageError> {
    if formats().stored(index).await?.is_some() {
        return formats().bring_forward(index).await;
    }
    let mut batch = Batch::new();
    batch.put(META, layout::format_key(), write(&Mark { format: FORMAT, note: None }));
    index.commit(batch, Durability::Durable).await
}
