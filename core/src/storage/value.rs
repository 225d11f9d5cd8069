//! What goes into a storage: spaces, keys, ranges, batches, and the limits of a backend.

use std::fmt;
use std::ops::Bound;

use bytes::Bytes;

use super::error::StorageError;

/// The longest key in bytes. The shortest has 1.
pub const MAX_KEY: usize = 1024;
/// The longest name of a space in bytes.
pub const MAX_SPACE: usize = 32;

/// A named set of keys, apart from all others: what SQL calls a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space {
    /// The name, and behind it zeros.
    padded: [u8; MAX_SPACE],
}

impl Space {
    /// The space with this name: 1 to 32 lower-case ASCII letters, digits and underscores, a letter first.
    ///
    /// # Panics
    /// If the name is another; as a constant that is an error of the compiler.
    pub const fn new(name: &str) -> Self {
        match Self::parse(name) {
            Some(space) => space,
            None => panic!("the name of a space has 1 to 32 lower-case letters, digits and underscores"),
        }
    }

    /// As [`Space::new`]; `None` for another name.
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

    /// The name, safe to use as an identifier in SQL.
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
    /// Checks the length of a key.
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

    /// The bytes of the key, shared.
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
        write!(f, "Key({})", self.0.escape_ascii())
    }
}

/// A range of keys. Its bounds are plain bytes and may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// Where the range begins.
    pub start: Bound<Bytes>,
    /// Where it ends.
    pub end: Bound<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub const fn all() -> Self {
        Self { start: Bound::Unbounded, end: Bound::Unbounded }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        // The first key behind the prefix: its last byte that is not 0xff, plus one.
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

    /// The part of this range that lies after `key`.
    pub fn after(&self, key: &Key) -> Self {
        Self { start: Bound::Excluded(key.0.clone()), end: self.end.clone() }
    }

    /// Whether the key lies in the range.
    pub fn contains(&self, key: &Key) -> bool {
        let key = key.as_bytes();
        let after_start = match &self.start {
            Bound::Included(start) => key >= &start[..],
            Bound::Excluded(start) => key > &start[..],
            Bound::Unbounded => true,
        };
        let before_end = match &self.end {
            Bound::Included(end) => key <= &end[..],
            Bound::Excluded(end) => key < &end[..],
            Bound::Unbounded => true,
        };
        after_start && before_end
    }

    /// Whether no key can lie in the range, because its end is not behind its start. Some engines panic on such
    /// a range or refuse it.
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

/// What must hold for a batch to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent(Space, Key),
    /// The key has exactly this value.
    Equals(Space, Key, Bytes),
}

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Gives the key this value, whatever it had.
    Put(Space, Key, Bytes),
    /// Takes the key away, if it is there.
    Delete(Space, Key),
}

impl Write {
    /// The space and key that are written.
    pub const fn target(&self) -> (Space, &Key) {
        match self {
            Self::Put(space, key, _) | Self::Delete(space, key) => (*space, key),
        }
    }

    /// The value that the key has afterwards.
    pub const fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Put(_, _, value) => Some(value),
            Self::Delete(..) => None,
        }
    }

    /// The bytes of key and value.
    pub fn size(&self) -> usize {
        self.target().1.as_bytes().len() + self.value().map_or(0, Bytes::len)
    }
}

/// Conditions and writes that stand or fall together. Conditions see the state before the batch; of several
/// writes to one key the last one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// All of these must hold.
    pub conditions: Vec<Condition>,
    /// These are applied in their order.
    pub writes: Vec<Write>,
}

impl Batch {
    /// A batch without conditions and writes.
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

    /// Adds a write that gives the key a value.
    pub fn put(&mut self, space: Space, key: Key, value: impl Into<Bytes>) -> &mut Self {
        self.writes.push(Write::Put(space, key, value.into()));
        self
    }

    /// Adds a write that takes the key away.
    pub fn delete(&mut self, space: Space, key: Key) -> &mut Self {
        self.writes.push(Write::Delete(space, key));
        self
    }

    /// The bytes of all keys and values in the batch: what [`Limits::max_batch`] bounds.
    pub fn size(&self) -> usize {
        let conditions = self.conditions.iter().map(|condition| match condition {
            Condition::Absent(_, key) => key.as_bytes().len(),
            Condition::Equals(_, key, value) => key.as_bytes().len() + value.len(),
        });
        conditions.chain(self.writes.iter().map(Write::size)).sum()
    }

    /// Whether there is nothing to check and nothing to write.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.writes.is_empty()
    }
}

/// What a commit survives once it returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// A crash of the process; a power cut only after the next sync or durable commit.
    Buffered,
    /// A power cut.
    Durable,
}

/// What a backend can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest value in bytes; at least 32 KiB.
    pub max_value: usize,
    /// The largest batch in bytes, see [`Batch::size`]; at least 8 MiB.
    pub max_batch: usize,
    /// About how many bytes a page of a scan has at most; one entry may go beyond it. At least 64 KiB.
    pub max_page_bytes: usize,
}

impl Limits {
    /// Refuses a batch that goes beyond the limits.
    pub fn check(&self, batch: &Batch) -> Result<(), StorageError> {
        for value in batch.writes.iter().filter_map(Write::value) {
            if value.len() > self.max_value {
                return Err(StorageError::TooLarge {
                    what: "value",
                    limit: self.max_value,
                    actual: value.len(),
                });
            }
        }
        let size = batch.size();
        if size > self.max_batch {
            return Err(StorageError::TooLarge { what: "batch", limit: self.max_batch, actual: size });
        }
        Ok(())
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
    fn spaces_are_ordered_by_their_names_and_other_names_are_refused() {
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
    fn a_batch_beyond_a_limit_is_refused() {
        const SPACE: Space = Space::new("s");
        let limits = Limits { max_value: 10, max_batch: 16, max_page_bytes: 1 };
        let mut batch = Batch::new();
        batch.put(SPACE, key(b"k"), vec![0; 10]);
        assert!(limits.check(&batch).is_ok());
        batch.put(SPACE, key(b"l"), vec![0; 5]);
        assert!(matches!(limits.check(&batch), Err(StorageError::TooLarge { what: "batch", .. })));
        let mut batch = Batch::new();
        batch.put(SPACE, key(b"k"), vec![0; 11]);
        assert!(matches!(limits.check(&batch), Err(StorageError::TooLarge { what: "value", .. })));
    }

    proptest! {
        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_the_prefix(
            prefix in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..4),
            other in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..6),
        ) {
            let range = KeyRange::prefix(&prefix);
            prop_assert_eq!(range.contains(&key(&other)), other.starts_with(&prefix));
        }

        #[test]
        fn an_empty_range_contains_nothing(
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
        }
    }
}
