//! Spaces, keys, ranges, batches, and the limits of a backend.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;

use super::error::StorageError;

/// The maximum length of a key in bytes. The minimum is 1.
pub const MAX_KEY: usize = 1024;
/// The maximum length of the name of a space in bytes.
pub const MAX_SPACE: usize = 32;
/// The least [`Limits::max_writes`] of a backend.
pub const MIN_WRITES: usize = 5000;

/// The purpose of a database, so that a backend can choose page sizes and table layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Many small records.
    Records,
    /// Pieces of files: values up to the largest that the backend supports, written once.
    Content,
}

impl Role {
    /// The name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Content => "content",
        }
    }
}

/// A named set of keys, separate from all other spaces, like a table in SQL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space {
    /// The name, padded with zeros.
    padded: [u8; MAX_SPACE],
}

impl Space {
    /// The space with this name: 1 to 32 lower-case ASCII letters, digits and underscores, starting with a letter.
    ///
    /// # Panics
    /// If the name is invalid. In a constant that is a compile-time error.
    pub const fn new(name: &str) -> Self {
        match Self::parse(name) {
            Some(space) => space,
            None => {
                panic!("invalid name of a space: expected 1 to 32 lower-case letters, digits and underscores")
            }
        }
    }

    /// Like [`Space::new`], but returns `None` if the name is invalid.
    pub const fn parse(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_SPACE || !bytes[0].is_ascii_lowercase() {
            return None;
        }
        let mut padded = [0; MAX_SPACE];
        let mut i = 0;
        while i < bytes.len() {
            if !(bytes[i].is_ascii_lowercase() || bytes[i].is_ascii_digit() || bytes[i] == b'_') {
                return None;
            }
            padded[i] = bytes[i];
            i += 1;
        }
        Some(Self { padded })
    }

    /// The name, which is a valid SQL identifier.
    pub fn name(&self) -> &str {
        let end = self.padded.iter().position(|&byte| byte == 0).unwrap_or(MAX_SPACE);
        str::from_utf8(&self.padded[..end]).expect("the name of a space is ASCII")
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Space({})", self.name())
    }
}

/// A key of 1 to [`MAX_KEY`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// Creates a key.
    ///
    /// # Errors
    /// [`StorageError::InvalidKey`] if the length is invalid.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, StorageError> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.len() > MAX_KEY {
            return Err(StorageError::InvalidKey { length: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Converts the key into its bytes without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// Escapes bytes that are not printable ASCII characters.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

/// A range of keys. The bounds are arbitrary bytes and may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// The lower bound.
    pub start: Bound<Bytes>,
    /// The upper bound.
    pub end: Bound<Bytes>,
}

impl KeyRange {
    /// The range of all keys.
    pub const fn all() -> Self {
        Self { start: Bound::Unbounded, end: Bound::Unbounded }
    }

    /// The range of the keys that start with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        // The successor of all keys with the prefix: its last byte other than 0xff is incremented.
        let end = match prefix.iter().rposition(|&byte| byte != 0xff) {
            Some(last) => {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                Bound::Excluded(end.into())
            }
            None => Bound::Unbounded,
        };
        Self { start: Bound::Included(Bytes::copy_from_slice(prefix)), end }
    }

    /// The part of the range after `key`.
    pub fn after(&self, key: &Key) -> Self {
        Self { start: Bound::Excluded(key.0.clone()), end: self.end.clone() }
    }

    /// The bounds as slices, for example for [`BTreeMap::range`](std::collections::BTreeMap::range).
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.start.as_ref().map(|key| &key[..]), self.end.as_ref().map(|key| &key[..]))
    }

    /// The range as a first key, which may be empty, and the key that follows its last one, if it has an end.
    pub fn half_open(&self) -> (Bytes, Option<Bytes>) {
        // The next key in the order of keys.
        let after = |key: &Bytes| [key, &b"\0"[..]].concat().into();
        let start = match &self.start {
            Bound::Included(key) => key.clone(),
            Bound::Excluded(key) => after(key),
            Bound::Unbounded => Bytes::new(),
        };
        let end = match &self.end {
            Bound::Included(key) => Some(after(key)),
            Bound::Excluded(key) => Some(key.clone()),
            Bound::Unbounded => None,
        };
        (start, end)
    }

    /// Returns whether the range contains the key.
    pub fn contains(&self, key: &Key) -> bool {
        RangeBounds::<[u8]>::contains(&self.bounds(), key.as_bytes())
    }

    /// Returns whether the range cannot contain a key, because its end is not after its start. Some engines panic on such a
    /// range or refuse it.
    pub fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
            | (Bound::Excluded(start), Bound::Included(end)) => start >= end,
            (Bound::Unbounded, Bound::Excluded(end)) => end.is_empty(),
            _ => false,
        }
    }
}

/// A precondition of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent(Space, Key),
    /// The key has this value.
    Equals(Space, Key, Bytes),
}

impl Condition {
    /// The space and key.
    pub const fn target(&self) -> (Space, &Key) {
        match self {
            Self::Absent(space, key) | Self::Equals(space, key, _) => (*space, key),
        }
    }

    /// The required value, or `None` if the key must be absent.
    pub const fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Absent(..) => None,
            Self::Equals(_, _, value) => Some(value),
        }
    }
}

/// A change in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets the value of the key.
    Put(Space, Key, Bytes),
    /// Removes the key if it exists.
    Delete(Space, Key),
}

impl Write {
    /// The written space and key.
    pub const fn target(&self) -> (Space, &Key) {
        match self {
            Self::Put(space, key, _) | Self::Delete(space, key) => (*space, key),
        }
    }

    /// The new value, or `None` for a deletion.
    pub const fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Put(_, _, value) => Some(value),
            Self::Delete(..) => None,
        }
    }

    /// The size of key and value in bytes.
    pub fn size(&self) -> usize {
        self.target().1.as_bytes().len() + self.value().map_or(0, Bytes::len)
    }
}

/// Conditions and writes that are applied atomically. Conditions apply to the state before the batch. If a batch writes a key
/// several times, the last write wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The conditions, all of which must hold.
    pub conditions: Vec<Condition>,
    /// The writes, which are applied in order.
    pub writes: Vec<Write>,
}

impl Batch {
    /// An empty batch.
    pub const fn new() -> Self {
        Self { conditions: Vec::new(), writes: Vec::new() }
    }

    /// Adds the condition that the key has no value.
    pub fn require_absent(&mut self, space: Space, key: Key) -> &mut Self {
        self.conditions.push(Condition::Absent(space, key));
        self
    }

    /// Adds the condition that the key has this value.
    pub fn require(&mut self, space: Space, key: Key, value: impl Into<Bytes>) -> &mut Self {
        self.conditions.push(Condition::Equals(space, key, value.into()));
        self
    }

    /// Adds a write of a value.
    pub fn put(&mut self, space: Space, key: Key, value: impl Into<Bytes>) -> &mut Self {
        self.writes.push(Write::Put(space, key, value.into()));
        self
    }

    /// Adds a deletion.
    pub fn delete(&mut self, space: Space, key: Key) -> &mut Self {
        self.writes.push(Write::Delete(space, key));
        self
    }

    /// The size of all keys and values in bytes, which [`Limits::max_batch`] limits.
    pub fn size(&self) -> usize {
        let conditions = self
            .conditions
            .iter()
            .map(|condition| condition.target().1.as_bytes().len() + condition.value().map_or(0, Bytes::len));
        conditions.chain(self.writes.iter().map(Write::size)).sum()
    }

    /// The final value of each written key, or `None` for a deletion.
    pub fn effects(&self) -> BTreeMap<(Space, &Key), Option<&Bytes>> {
        self.writes.iter().map(|write| (write.target(), write.value())).collect()
    }

    /// Returns whether the batch has neither conditions nor writes.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.writes.is_empty()
    }
}

/// The durability of a commit after it returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// Survives a crash of the process, and a power failure after the next sync or durable commit.
    Buffered,
    /// Survives a power failure.
    Durable,
}

/// The limits of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum size of a value in bytes; at least 32 KiB.
    pub max_value: usize,
    /// The maximum size of a batch in bytes, see [`Batch::size`]; at least 8 MiB.
    pub max_batch: usize,
    /// The maximum number of writes of a batch, and of its conditions; at least [`MIN_WRITES`].
    pub max_writes: usize,
    /// The maximum size of a page of a scan in bytes, which the last entry may exceed. At least 64 KiB.
    pub max_page_bytes: usize,
}

impl Limits {
    /// Checks a batch against the limits.
    ///
    /// # Errors
    /// [`StorageError::TooLarge`].
    pub fn check(&self, batch: &Batch) -> Result<(), StorageError> {
        let check = |what, unit, limit, actual| {
            if actual > limit { Err(StorageError::TooLarge { what, unit, limit, actual }) } else { Ok(()) }
        };
        for value in batch.writes.iter().filter_map(Write::value) {
            check("value", "bytes", self.max_value, value.len())?;
        }
        check("batch", "bytes", self.max_batch, batch.size())?;
        check("batch", "conditions", self.max_writes, batch.conditions.len())?;
        check("batch", "writes", self.max_writes, batch.writes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(bytes: &[u8]) -> Key {
        Key::new(bytes.to_vec()).unwrap()
    }

    #[test]
    fn spaces_sort_by_name_and_invalid_names_are_refused() {
        let names = ["a", "a0", "a_b", "ab", "b", "b1234567890123456789012345678901"];
        let spaces = names.map(Space::new);
        assert!(spaces.is_sorted());
        assert_eq!(spaces.each_ref().map(Space::name), names);
        for name in ["", "A", "0a", "_a", "a-b", "a b", "\u{e9}", "b12345678901234567890123456789012"] {
            assert_eq!(Space::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn keys_have_1_to_1024_bytes() {
        assert!(Key::new(vec![]).is_err());
        assert!(Key::new(vec![0; 1024]).is_ok());
        assert!(Key::new(vec![0; 1025]).is_err());
    }

    #[test]
    fn oversized_batch_is_refused() {
        const SPACE: Space = Space::new("s");
        let limits = Limits { max_value: 10, max_batch: 16, max_writes: 2, max_page_bytes: 1 };
        let mut batch = Batch::new();
        batch.put(SPACE, key(b"k"), vec![0; 10]);
        assert!(limits.check(&batch).is_ok());
        batch.put(SPACE, key(b"l"), vec![0; 5]);
        assert!(matches!(limits.check(&batch), Err(StorageError::TooLarge { what: "batch", .. })));
        let mut batch = Batch::new();
        batch.put(SPACE, key(b"k"), vec![0; 11]);
        assert!(matches!(limits.check(&batch), Err(StorageError::TooLarge { what: "value", .. })));
        let mut batch = Batch::new();
        batch.delete(SPACE, key(b"k")).delete(SPACE, key(b"k")).require_absent(SPACE, key(b"k"));
        assert!(limits.check(&batch).is_ok());
        batch.delete(SPACE, key(b"k"));
        let error = limits.check(&batch).unwrap_err();
        assert_eq!(error.to_string(), "batch of 3 writes exceeds the limit of 2 writes of this storage");
        let mut batch = Batch::new();
        for _ in 0..3 {
            batch.require_absent(SPACE, key(b"k"));
        }
        assert!(matches!(limits.check(&batch), Err(StorageError::TooLarge { unit: "conditions", .. })));
    }

    #[test]
    fn effects_are_the_last_writes() {
        const SPACE: Space = Space::new("s");
        let mut batch = Batch::new();
        batch.put(SPACE, key(b"k"), "1").put(SPACE, key(b"l"), "1").delete(SPACE, key(b"k"));
        let effects: Vec<_> = batch.effects().into_iter().map(|((_, key), value)| (key, value)).collect();
        assert_eq!(effects, [(&key(b"k"), None), (&key(b"l"), Some(&Bytes::from("1")))]);
    }

    proptest! {
        #[test]
        fn prefix_range_contains_exactly_keys_with_prefix(
            prefix in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..4),
            other in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..6),
        ) {
            let range = KeyRange::prefix(&prefix);
            prop_assert_eq!(range.contains(&key(&other)), other.starts_with(&prefix));
        }

        #[test]
        fn empty_range_contains_no_key_and_half_open_range_the_same_keys(
            start in prop::collection::vec(0u8..3, 0..3), end in prop::collection::vec(0u8..3, 0..3),
            kinds in (0..3, 0..3), probe in prop::collection::vec(0u8..3, 1..4),
        ) {
            let bound = |kind, bytes: Vec<u8>| match kind {
                0 => Bound::Included(Bytes::from(bytes)),
                1 => Bound::Excluded(Bytes::from(bytes)),
                _ => Bound::Unbounded,
            };
            let range = KeyRange { start: bound(kinds.0, start), end: bound(kinds.1, end) };
            prop_assert!(!(range.is_empty() && range.contains(&key(&probe))));
            let (start, end) = range.half_open();
            let inside = probe[..] >= start[..] && end.is_none_or(|end| probe[..] < end[..]);
            prop_assert_eq!(inside, range.contains(&key(&probe)));
        }
    }
}
