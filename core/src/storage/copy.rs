//! Copies records from one storage to another, of whatever backends, space by space.
//!
//! A copy is a comparison that puts right what differs: both sides are walked in the order of their keys, and what is
//! the same is passed over. So one that was cut off is begun again and soon gets to where it was, also when the source
//! changed meanwhile. As long as it is under way the target has a [`Mark`], and whoever opens a database for anything
//! else has to refuse one that has it ([`mark`]). Content of files has a way of its own, see [`crate::library::carry`].

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::Storage;
use super::error::StorageError;
use super::value::{Batch, Durability, Key, KeyRange, Space};

/// The space of a target in which the mark is.
pub const MARKS: Space = Space::new("copying");
/// The version of [`Mark`].
pub const VERSION: u64 = 1;
/// How many entries are read or written at once.
const PAGE: usize = 1000;
/// About how many bytes are written at once, where the target takes that many.
const BATCH: usize = 4 << 20;

/// What the target of a copy says as long as the copy is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The version of the record. Of another than [`VERSION`] nothing else is known.
    pub v: u64,
    /// Names the source; only the same one goes on.
    pub source: ByteBuf,
    /// How far the content of files is; none where none is copied yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Cursor>,
}

/// How far the content of files is: everything before is in the target, and safe from a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Names the state of the source's index; of another one nothing is known to be there.
    pub of: ByteBuf,
    /// What the store of content has as its [`crate::library::stamp`]; in one with another nothing is known to be there.
    #[serde(default)]
    pub stamp: ByteBuf,
    /// The piece that was copied last: file id (32) ‖ number of the piece (4).
    pub after: ByteBuf,
    /// How many pieces were copied.
    pub pieces: u64,
    /// How many bytes they have.
    pub bytes: u64,
}

impl Mark {
    /// The mark of a copy that begins.
    pub fn new(source: &[u8]) -> Self {
        Self { v: VERSION, source: ByteBuf::from(source), content: None }
    }

    /// Writes it to the target, safe from a power cut, along with everything that was written before.
    pub async fn save(&self, target: &dyn Storage) -> Result<(), StorageError> {
        let mut value = Vec::new();
        ciborium::into_writer(self, &mut value).expect("plain values are written to memory without fail");
        let mut batch = Batch::new();
        batch.put(MARKS, state_key(), value);
        target.commit(batch, Durability::Durable).await
    }
}

fn state_key() -> Key {
    Key::new(&b"state"[..]).expect("it has 5 bytes")
}

/// The part of a mark that every version has.
#[derive(Deserialize)]
struct Version {
    v: u64,
}

/// The mark of a database that is the target of a copy under way.
pub async fn mark(storage: &dyn Storage) -> Result<Option<Mark>, StorageError> {
    let value = storage.get(MARKS, &[state_key()]).await?.into_iter().next().flatten();
    let Some(value) = value else { return Ok(None) };
    let Version { v } = read(&value)?;
    let other = Mark { v, source: ByteBuf::new(), content: None };
    Ok(Some(if v == VERSION { read(&value)? } else { other }))
}

fn read<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, StorageError> {
    ciborium::de::from_reader_with_recursion_limit(value, 16).map_err(|error| {
        let what = "the mark of a copy cannot be read".to_owned();
        StorageError::Corrupt { what, source: Some(error.to_string().into()) }
    })
}

/// Takes the mark away: the copy is whole, and that is safe from a power cut on return.
pub async fn finish(target: &dyn Storage) -> Result<(), StorageError> {
    let mut batch = Batch::new();
    batch.delete(MARKS, state_key());
    target.commit(batch, Durability::Durable).await
}

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

/// Takes everything out of these spaces.
pub async fn empty(storage: &dyn Storage, spaces: &[Space]) -> Result<(), StorageError> {
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
            storage.commit(batch, Durability::Buffered).await?;
        }
    }
    Ok(())
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
    /// commit. Nothing is synced: [`finish`] is behind everything that was written.
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
                    self.to.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
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
                    self.to.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
                    size = 0;
                    progress(copied);
                }
                size += added;
                batch.put(self.space, key, value);
            }
            if batch.writes.len() >= PAGE {
                self.to.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
                size = 0;
                progress(copied);
            } else if copied.entries.is_multiple_of(PAGE as u64) {
                progress(copied);
            }
        }
        if !batch.is_empty() {
            self.to.commit(batch, Durability::Buffered).await?;
        }
        progress(copied);
        Ok(copied)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SPACE: Space = Space::new("some");

    async fn holding(entries: &BTreeMap<Vec<u8>, Vec<u8>>) -> Memory {
        let storage = Memory::new();
        for (key, value) in entries {
            let mut batch = Batch::new();
            batch.put(SPACE, Key::new(key.clone()).unwrap(), value.clone());
            storage.commit(batch, Durability::Buffered).await.unwrap();
        }
        storage
    }

    fn copy<'a>(from: &'a Memory, to: &'a Memory) -> Copy<'a> {
        Copy { from, to, space: SPACE, change: &|_, _, value| Ok(value) }
    }

    fn entries() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
        let bytes = |lengths| prop::collection::vec(0u8..3, lengths);
        prop::collection::btree_map(bytes(1..5), bytes(0..3), 0..60)
    }

    proptest! {
        #[test]
        fn whatever_the_target_had_it_has_what_the_source_has(ours in entries(), theirs in entries()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (from, to) = (holding(&ours).await, holding(&theirs).await);
                let first = copy(&from, &to).first_difference().await.unwrap();
                let differing = ours.iter().chain(&theirs).filter(|(key, _)| ours.get(*key) != theirs.get(*key));
                let differing = differing.map(|(key, _)| Key::new(key.clone()).unwrap()).min();
                prop_assert_eq!(first, differing);
                let copied = copy(&from, &to).run(|_| {}).await.unwrap();
                prop_assert_eq!(copied.entries, ours.len() as u64);
                prop_assert_eq!(copy(&from, &to).first_difference().await.unwrap(), None);
                prop_assert_eq!(count(&to, SPACE).await.unwrap(), copied);
                empty(&to, &[SPACE]).await.unwrap();
                prop_assert!(is_empty(&to, &[SPACE]).await.unwrap());
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn many_entries_and_large_ones_go_in_batches() {
        let many: BTreeMap<Vec<u8>, Vec<u8>> = (0..5000u32)
            .map(|number| (number.to_be_bytes().to_vec(), vec![1; if number < 300 { 32 << 10 } else { 3 }]))
            .collect();
        let (from, to) = (holding(&many).await, Memory::new());
        let mut told = Vec::new();
        let copied = copy(&from, &to).run(|count| told.push(count)).await.unwrap();
        assert_eq!(copied.entries, 5000);
        assert!(told.len() > 7 && told.is_sorted_by_key(|count| count.entries), "{told:?}");
        assert_eq!(copy(&from, &to).first_difference().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_database_is_the_same_as_itself_alone() {
        let (one, other) = (Memory::new(), Memory::new());
        assert!(is_same(&one, &one).await.unwrap());
        assert!(!is_same(&one, &other).await.unwrap());
        assert!(is_empty(&one, &[MARKS]).await.unwrap(), "nothing of it stays");
    }

    #[tokio::test]
    async fn the_mark_is_there_until_the_copy_is_finished() {
        let target = Memory::new();
        assert_eq!(mark(&target).await.unwrap(), None);
        let mut written = Mark::new(b"source");
        let bytes = |bytes: &[u8]| ByteBuf::from(bytes);
        let (of, stamp, after) = (bytes(b"state"), bytes(b"stamp"), bytes(&[1; 36]));
        written.content = Some(Cursor { of, stamp, after, pieces: 3, bytes: 4 });
        written.save(&target).await.unwrap();
        assert_eq!(mark(&target).await.unwrap(), Some(written));
        finish(&target).await.unwrap();
        assert_eq!(mark(&target).await.unwrap(), None);
    }

    #[tokio::test]
    async fn of_a_newer_mark_the_version_is_known_and_a_damaged_one_is_told() {
        #[derive(Serialize)]
        struct Newer {
            v: u64,
            source: u64,
        }
        let target = Memory::new();
        let put = async |value: Vec<u8>| {
            let mut batch = Batch::new();
            batch.put(MARKS, state_key(), value);
            target.commit(batch, Durability::Buffered).await.unwrap();
        };
        let mut value = Vec::new();
        ciborium::into_writer(&Newer { v: 1000, source: 1 }, &mut value).unwrap();
        put(value).await;
        assert_eq!(mark(&target).await.unwrap().unwrap().v, 1000);
        put(vec![0xff; 3]).await;
        assert!(matches!(mark(&target).await, Err(StorageError::Corrupt { .. })));
    }
}
