//! Copies of records from one storage to another, between any backends, space by space.
//!
//! A copy compares source and target in key order and writes only the differences. So an interrupted copy is simply restarted,
//! even if the source changed, and skips the records that are already copied. A target contains a [`mark::Mark`] while a copy is
//! in progress; programs must not open such a database for other purposes ([`mark::find`]). A scan of several pages is not a
//! snapshot, so a copy compares the [`Extent`] of the source before and after to detect concurrent writes. The content of
//! files is copied by the library.

pub mod mark;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::Serialize;

use enjambre_core::storage::pages::{Entries, StorageExt as _};
use enjambre_core::{Batch, Durability, Key, KeyRange, Space, Storage, StorageError};
use mark::{MARKS, Marking};

/// The maximum number of entries in a page or batch.
const PAGE: usize = 1000;
/// The target size of a batch in bytes, if the limits of the storage allow it.
const BATCH: usize = 4 << 20;

/// Returns whether both storages are the same database, by a temporary write to one of them.
pub async fn is_same(one: &dyn Storage, other: &dyn Storage) -> Result<bool, StorageError> {
    let key = Key::new([&b"probe"[..], &rand::random::<[u8; 16]>()].concat())?;
    let mut batch = Batch::new();
    batch.put(MARKS, key.clone(), Bytes::from_static(&[1]));
    one.commit(batch, Durability::Buffered).await?;
    let seen = other.get(MARKS, std::slice::from_ref(&key)).await;
    let mut batch = Batch::new();
    batch.delete(MARKS, key);
    one.commit(batch, Durability::Buffered).await?;
    Ok(seen?.iter().any(Option::is_some))
}

/// A number of entries and their size.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The number of entries.
    pub entries: u64,
    /// The size of keys and values in bytes, without the overhead of the database.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, key: &Key, value: &Bytes) {
        self.entries += 1;
        self.bytes += (key.as_bytes().len() + value.len()) as u64;
    }
}

/// The size and the hash of a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The number and size of the entries.
    pub count: Count,
    /// The BLAKE3 hash of all keys and values in key order.
    pub hash: [u8; 32],
}

impl Extent {
    /// Reads a whole space.
    ///
    /// If two extents are equal, the space did not change between the end of the first reading and the start of the second,
    /// unless a change was reverted. So the pages read in between form a snapshot.
    pub async fn of(storage: &dyn Storage, space: Space) -> Result<Self, StorageError> {
        let mut hasher = blake3::Hasher::new();
        let count = hash_entries(storage, space, &mut hasher).await?;
        Ok(Self { count, hash: *hasher.finalize().as_bytes() })
    }
}

/// Hashes every entry of a space: key and value, each preceded by its length.
pub async fn hash_entries(
    storage: &dyn Storage,
    space: Space,
    hasher: &mut blake3::Hasher,
) -> Result<Count, StorageError> {
    let mut walk = storage.entries(space, KeyRange::all(), PAGE);
    let mut count = Count::default();
    while let Some((key, value)) = walk.next().await? {
        for part in [key.as_bytes(), &value] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        count.add(&key, &value);
    }
    Ok(count)
}

/// Counts the entries of a space.
pub async fn count(storage: &dyn Storage, space: Space) -> Result<Count, StorageError> {
    let mut walk = storage.entries(space, KeyRange::all(), PAGE);
    let mut count = Count::default();
    while let Some((key, value)) = walk.next().await? {
        count.add(&key, &value);
    }
    Ok(count)
}

/// Returns whether the spaces are empty.
pub async fn is_empty(storage: &dyn Storage, spaces: &[Space]) -> Result<bool, StorageError> {
    for space in spaces {
        if !storage.scan(*space, KeyRange::all(), 1).await?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Deletes all entries of the spaces, on the condition that the target still has the mark of this copy.
pub async fn empty(
    storage: &dyn Storage,
    spaces: &[Space],
    marking: Option<&Marking<'_>>,
) -> Result<(), StorageError> {
    for space in spaces {
        loop {
            let page = storage.scan(*space, KeyRange::all(), PAGE).await?;
            if page.is_empty() {
                break;
            }
            let mut batch = Batch::new();
            for (key, _) in page {
                batch.delete(*space, key);
            }
            commit(storage, batch, marking).await?;
        }
    }
    Ok(())
}

async fn commit(
    to: &dyn Storage,
    mut batch: Batch,
    marking: Option<&Marking<'_>>,
) -> Result<(), StorageError> {
    if let Some(marking) = marking {
        marking.require(&mut batch);
    }
    to.commit(batch, Durability::Buffered).await
}

/// A conversion of values.
pub type Change<'a> = dyn Fn(Space, &Key, Bytes) -> Result<Bytes, StorageError> + Send + Sync + 'a;

/// A copy of the records of one space.
#[derive(Clone, Copy)]
pub struct Copy<'a> {
    /// The source, which must not change during the copy.
    pub from: &'a dyn Storage,
    /// The target, which must not be used otherwise during the copy.
    pub to: &'a dyn Storage,
    /// The space.
    pub space: Space,
    /// The conversion of values.
    pub change: &'a Change<'a>,
    /// The mark, if it is in `to`: nothing is written after another copy replaces it.
    pub marking: Option<&'a Marking<'a>>,
}

impl Copy<'_> {
    /// Makes the target equal to the source. `progress` is called with the copied entries after commits and at intervals. Nothing is synced
    /// before [`Marking::remove`].
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if another copy uses the target.
    pub async fn run(&self, mut progress: impl FnMut(Count)) -> Result<Count, StorageError> {
        let (mut from, mut there) = (self.walk(self.from), self.walk(self.to));
        let (mut batch, mut size, mut copied) = (Batch::new(), 0, Count::default());
        loop {
            let next = from.next().await?;
            // Entries that the source does not contain are deleted.
            while let Some((key, _)) = there.peek().await?
                && next.as_ref().is_none_or(|(wanted, _)| key < wanted)
            {
                let key = key.clone();
                self.commit_full(&mut batch, &mut size, key.as_bytes().len()).await?;
                batch.delete(self.space, key);
                there.skip();
            }
            let Some((key, value)) = next else { break };
            let value = (self.change)(self.space, &key, value)?;
            copied.add(&key, &value);
            let same = match there.peek().await? {
                Some((found, held)) if *found == key => {
                    let same = *held == value;
                    there.skip();
                    same
                }
                _ => false,
            };
            let mut report = copied.entries.is_multiple_of(PAGE as u64);
            if !same {
                let added = key.as_bytes().len() + value.len();
                report |= self.commit_full(&mut batch, &mut size, added).await?;
                batch.put(self.space, key, value);
            }
            if report {
                progress(copied);
            }
        }
        if !batch.is_empty() {
            commit(self.to, batch, self.marking).await?;
        }
        progress(copied);
        Ok(copied)
    }

    fn walk<'s>(&self, storage: &'s dyn Storage) -> Entries<'s, dyn Storage> {
        storage.entries(self.space, KeyRange::all(), PAGE)
    }

    /// Commits a batch to which no more entry of `added` bytes fits. Adds `added` to its size.
    async fn commit_full(
        &self,
        batch: &mut Batch,
        size: &mut usize,
        added: usize,
    ) -> Result<bool, StorageError> {
        let limit = BATCH.min(self.to.limits().max_batch / 2);
        let full = batch.writes.len() == PAGE || (!batch.is_empty() && *size + added > limit);
        if full {
            commit(self.to, std::mem::take(batch), self.marking).await?;
            *size = 0;
        }
        *size += added;
        Ok(full)
    }

    /// Returns the first key whose value differs, or `None` if the target equals the source.
    pub async fn first_difference(&self) -> Result<Option<Key>, StorageError> {
        let (mut from, mut there) = (self.walk(self.from), self.walk(self.to));
        loop {
            match (from.next().await?, there.next().await?) {
                (None, None) => return Ok(None),
                (Some((key, value)), Some((found, held))) if key == found => {
                    if (self.change)(self.space, &key, value)? != held {
                        return Ok(Some(key));
                    }
                }
                (Some((one, _)), Some((other, _))) => return Ok(Some(one.min(other))),
                (Some((key, _)), None) | (None, Some((key, _))) => return Ok(Some(key)),
            }
        }
    }
}
