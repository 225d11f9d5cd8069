//! A storage in which every space has a prefix before its name, so that several trackers can share one database.
//!
//! With the prefix `north` the space `files` is `north_files` in the database beneath. Who has another prefix, or none,
//! does not see it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Condition, Durability, Key, KeyRange, Limits, MAX_SPACE, Space, Write};

/// The longest prefix in bytes: it leaves room for the names of all spaces that this program has.
pub const MAX_PREFIX: usize = 15;
/// How many digits of a hash stand for a name that is too long with a prefix.
const HASH: usize = MAX_SPACE - MAX_PREFIX - 1;
/// What own spaces begin with. `library_files` must be the space of a library, not `files` of somebody with this prefix.
const TAKEN: [&str; 2] = ["file", "library"];

/// What stands before the name of every space: 1 to 15 lower-case letters and digits, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix(String);

/// Why a text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    /// Its length, or a character.
    #[error("a prefix has 1 to {MAX_PREFIX} lower-case letters and digits, a letter first")]
    Form,
    /// With it the names of spaces would be those that others have without a prefix.
    #[error("spaces without a prefix begin like this; choose another one")]
    Taken,
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        // Without an underscore in it, where a prefix ends is never in doubt.
        let form = text.len() <= MAX_PREFIX && !text.contains('_') && Space::parse(text).is_some();
        if !form {
            return Err(InvalidPrefix::Form);
        }
        if TAKEN.contains(&text) {
            return Err(InvalidPrefix::Taken);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Prefix {
    /// The space with the prefix before its name. Where that is too long, a hash takes the place of the name.
    fn space(&self, space: Space) -> Space {
        let named = Space::parse(&[&self.0, "_", space.name()].concat());
        named.unwrap_or_else(|| {
            let hash = blake3::hash(space.name().as_bytes()).to_hex();
            Space::new(&[&self.0, "_", &hash[..HASH]].concat())
        })
    }
}

/// A storage whose spaces have a prefix beneath.
#[derive(Debug)]
pub struct PrefixedStorage {
    inner: Arc<dyn Storage>,
    prefix: Prefix,
}

impl PrefixedStorage {
    /// Puts the prefix before the name of every space.
    pub const fn new(inner: Arc<dyn Storage>, prefix: Prefix) -> Self {
        Self { inner, prefix }
    }
}

#[async_trait]
impl Storage for PrefixedStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.inner.get(self.prefix.space(space), keys).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.inner.scan(self.prefix.space(space), range, limit).await
    }

    async fn commit(&self, mut batch: Batch, durability: Durability) -> Result<(), StorageError> {
        // Batches have many entries of few spaces, next to each other.
        let mut last: Option<(Space, Space)> = None;
        let mut rename = |space: &mut Space| {
            let named = match last {
                Some((from, to)) if from == *space => to,
                _ => self.prefix.space(*space),
            };
            last = Some((*space, named));
            *space = named;
        };
        for condition in &mut batch.conditions {
            let (Condition::Absent(space, _) | Condition::Equals(space, ..)) = condition;
            rename(space);
        }
        for write in &mut batch.writes {
            let (Write::Put(space, ..) | Write::Delete(space, _)) = write;
            rename(space);
        }
        self.inner.commit(batch, durability).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.inner.sync().await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;
    use crate::{catalogue, library};

    fn spaces() -> impl Iterator<Item = &'static Space> {
        catalogue::layout::SPACES.iter().chain(library::SPACES)
    }

    #[test]
    fn a_prefix_is_short_and_plain_and_keeps_off_the_names_of_others() {
        for text in ["a", "north", "n0", "abcdefghijklmno"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for text in ["", "North", "0n", "a_b", "a-b", "é", "abcdefghijklmnop"] {
            assert_eq!(text.parse::<Prefix>(), Err(InvalidPrefix::Form), "{text}");
        }
        for space in spaces() {
            if let Some((first, _)) = space.name().split_once('_') {
                assert_eq!(first.parse::<Prefix>(), Err(InvalidPrefix::Taken), "{space:?}");
            }
        }
    }

    #[test]
    fn every_space_of_this_program_keeps_its_name_behind_the_longest_prefix() {
        let prefix: Prefix = "a".repeat(MAX_PREFIX).parse().unwrap();
        for space in spaces() {
            let named = prefix.space(*space);
            assert_eq!(named.name(), format!("{prefix}_{}", space.name()));
        }
    }

    #[test]
    fn names_that_are_too_long_with_a_prefix_stay_apart() {
        for prefix in ["n", "abcdefghijklmno"] {
            let prefix: Prefix = prefix.parse().unwrap();
            let named =
                ["a", "b"].map(|end| prefix.space(Space::new(&["s".repeat(31).as_str(), end].concat())));
            assert_ne!(named[0], named[1]);
            assert!(named.iter().all(|space| space.name().starts_with(&format!("{prefix}_"))), "{named:?}");
        }
    }

    #[tokio::test]
    async fn conditions_and_writes_meet_only_their_own_prefix() {
        let space = Space::new("s");
        let (key, memory) = (Key::new(vec![1]).unwrap(), Arc::new(Memory::new()));
        let at = |prefix: &str| PrefixedStorage::new(memory.clone(), prefix.parse().unwrap());
        let mut batch = Batch::new();
        batch.require_absent(space, key.clone()).put(space, key.clone(), vec![7]);
        at("north").commit(batch.clone(), Durability::Buffered).await.unwrap();
        at("south").commit(batch.clone(), Durability::Buffered).await.unwrap();
        let again = at("south").commit(batch, Durability::Buffered).await;
        assert!(matches!(again, Err(StorageError::Conflict)));
        let mut batch = Batch::new();
        batch.require(space, key.clone(), vec![7]).delete(space, key.clone());
        at("north").commit(batch, Durability::Buffered).await.unwrap();
        let there = async |space: &str| {
            memory.get(Space::new(space), std::slice::from_ref(&key)).await.unwrap()[0].is_some()
        };
        assert_eq!((there("north_s").await, there("south_s").await, there("s").await), (false, true, false));
    }
}
