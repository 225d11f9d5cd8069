//! Copies records from one storage to another, of whatever backends, space by space.
//!
//! A copy is a comparison that puts right what differs: both sides are walked in the order of their keys, and what is
//! the same is passed over. So one that was cut off is begun again and soon gets to where it was, also when the source
//! changed meanwhile. As long as it is under way the target has a [`mark::Mark`], and whoever opens a database for
//! anything else has to refuse one that has it ([`mark::find`]). Pages are no snapshot: whether somebody wrote to the
//! source meanwhile is told by its [`Extent`] before and after. Content of files has a way of its own, see
//! [`crate::library::carry`].

pub mod mark;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Serialize;

use super::Storage;
use super::error::StorageError;
use super::value::{Batch, Durability, Key, KeyRange, Space};
use mark::{MARKS, Marking};

/// How many entries are read or written at once.
const PAGE: usize = 1000;
/// About how many bytes are written at once, where the target takes that many.
const BATCH: usize = 4 << 20;

/// Whether both are the same database: what is written to one is seen in the other, and taken away again.
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

/// Entries and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub entries: u64,
    /// Of keys and values together; what a database needs beyond them is not counted.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, key: &Key, value: &Bytes) {
        self.entries += 1;
        self.bytes += (key.as_bytes().len() + value.len()) as u64;
    }
}

/// What is in a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How much.
    pub count: Count,
    /// The BLAKE3 hash of all keys and values in their order: another one after any change.
    pub hash: [u8; 32],
}

impl Extent {
    /// Reads all of a space.
    ///
    /// Two that are equal say that the space held this, as one, at some time between the end of the first reading and
    /// the beginning of the second, unless it was changed and changed back. So what was read in between, page by page,
    /// is of one moment.
    pub async fn of(storage: &dyn Storage, space: Space) -> Result<Self, StorageError> {
        let mut hasher = blake3::Hasher::new();
        let count = hash_entries(storage, space, &mut hasher).await?;
        Ok(Self { count, hash: *hasher.finalize().as_bytes() })
    }
}

/// Puts every entry of a space into a hash: its key and its value, each behind its length.
pub(crate) async fn hash_entries(
    storage: &dyn Storage,
    space: Space,
    hasher: &mut blake3::Hasher,
) -> Result<Count, StorageError> {
    let mut walk = Walk::new(storage, space);
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

/// Counts what is in a space.
pub async fn count(storage: &dyn Storage, space: Space) -> Result<Count, StorageError> {
    let mut walk = Walk::new(storage, space);
    let mut count = Count::default();
    while let Some((key, value)) = walk.next().await? {
        count.add(&key, &value);
    }
    Ok(count)
}

/// Whether nothing is in these spaces.
pub async fn is_empty(storage: &dyn Storage, spaces: &[Space]) -> Result<bool, StorageError> {
    for space in spaces {
        if !storage.scan(*space, KeyRange::all(), 1).await?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes everything out of these spaces, as long as `marking` says that the target is this copy's.
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

/// What becomes of a value on its way.
pub type Change<'a> = dyn Fn(Space, &Key, Bytes) -> Result<Bytes, StorageError> + Send + Sync + 'a;

/// The records of one space, from a source to a target.
#[derive(Clone, Copy)]
pub struct Copy<'a> {
    /// Where they are. Nobody writes there meanwhile.
    pub from: &'a dyn Storage,
    /// Where they are to be. Nobody else writes there meanwhile.
    pub to: &'a dyn Storage,
    /// The space.
    pub space: Space,
    /// What becomes of the values.
    pub change: &'a Change<'a>,
    /// The mark in `to`, where that is the database which has it: nothing is written once another copy has changed it.
    pub marking: Option<&'a Marking<'a>>,
}

impl std::fmt::Debug for Copy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copy")
            .field("from", &self.from)
            .field("to", &self.to)
            .field("space", &self.space)
            .finish()
    }
}

impl Copy<'_> {
    /// Gives the target the entries of the source and no others. `progress` is told what was copied so far, after each
    /// commit. Nothing is synced: [`Marking::remove`] is behind everything that was written.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] where another copy has taken the target over.
    pub async fn run(&self, mut progress: impl FnMut(Count)) -> Result<Count, StorageError> {
        let limits = self.to.limits();
        let full = BATCH.min(limits.max_batch / 2);
        let (mut from, mut there) = (Walk::new(self.from, self.space), Walk::new(self.to, self.space));
        let (mut batch, mut size, mut copied) = (Batch::new(), 0, Count::default());
        loop {
            let next = from.next().await?;
            // What the source does not have goes.
            while let Some((key, _)) = there.peek().await?
                && next.as_ref().is_none_or(|(wanted, _)| key < wanted)
            {
                size += key.as_bytes().len();
                batch.delete(self.space, key.clone());
                there.skip();
                if batch.writes.len() == PAGE {
                    self.commit(std::mem::take(&mut batch)).await?;
                    size = 0;
                }
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
            if !same {
                let added = key.as_bytes().len() + value.len();
                if !batch.is_empty() && size + added > full {
                    self.commit(std::mem::take(&mut batch)).await?;
                    size = 0;
                    progress(copied);
                }
                size += added;
                batch.put(self.space, key, value);
            }
            if batch.writes.len() >= PAGE {
                self.commit(std::mem::take(&mut batch)).await?;
                size = 0;
                progress(copied);
            } else if copied.entries.is_multiple_of(PAGE as u64) {
                progress(copied);
            }
        }
        if !batch.is_empty() {
            self.commit(batch).await?;
        }
        progress(copied);
        Ok(copied)
    }

    async fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        commit(self.to, batch, self.marking).await
    }

    /// The first key of which the target does not have what the source has; none where both are the same.
    pub async fn first_difference(&self) -> Result<Option<Key>, StorageError> {
        let (mut from, mut there) = (Walk::new(self.from, self.space), Walk::new(self.to, self.space));
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

/// The entries of a space in their order, read page by page. What is written behind it is not seen.
pub(crate) struct Walk<'a> {
    storage: &'a dyn Storage,
    space: Space,
    range: KeyRange,
    page: VecDeque<(Key, Bytes)>,
    ended: bool,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(storage: &'a dyn Storage, space: Space) -> Self {
        Self { storage, space, range: KeyRange::all(), page: VecDeque::new(), ended: false }
    }

    async fn fill(&mut self) -> Result<(), StorageError> {
        if self.page.is_empty() && !self.ended {
            let page = self.storage.scan(self.space, self.range.clone(), PAGE).await?;
            match page.last() {
                Some((last, _)) => self.range = self.range.after(last),
                None => self.ended = true,
            }
            self.page = page.into();
        }
        Ok(())
    }

    async fn peek(&mut self) -> Result<Option<&(Key, Bytes)>, StorageError> {
        self.fill().await?;
        Ok(self.page.front())
    }

    fn skip(&mut self) {
        self.page.pop_front();
    }

    pub(crate) async fn next(&mut self) -> Result<Option<(Key, Bytes)>, StorageError> {
        self.fill().await?;
        Ok(self.page.pop_front())
    }
}
