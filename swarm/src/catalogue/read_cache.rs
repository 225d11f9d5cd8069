//! A cache of values from the database in bounded memory.
//!
//! Entries are valid for a limited time, because another tracker may write to the same database. The owner removes or updates
//! an entry before it acknowledges a write. A read that overlaps a write may return the old value. Each write therefore changes
//! the stamp of its key, and a value is cached only if the stamp is the same as before the read. Keys share stamps by their
//! hash, which at worst causes an unnecessary read.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use enjambre_core::UnixMillis;
use enjambre_core::runtime::Keys;

const STAMPS: usize = 1024;

/// The stamp of a key at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    index: usize,
    value: u64,
}

#[derive(Debug, Clone)]
struct Entry<V> {
    value: V,
    read: UnixMillis,
    weight: u64,
}

#[derive(Debug, Clone)]
struct ByWeight;

impl<K, V> Weighter<K, Entry<V>> for ByWeight {
    fn weight(&self, _: &K, entry: &Entry<V>) -> u64 {
        entry.weight
    }
}

/// A cache of values from the database.
#[derive(Debug)]
pub(crate) struct ReadCache<K, V> {
    entries: Cache<K, Entry<V>, ByWeight>,
    hasher: Keys,
    stamps: Box<[AtomicU64]>,
    ttl: Duration,
}

impl<K: Hash + Eq, V: Clone> ReadCache<K, V> {
    /// A cache of at most `bytes` bytes, with entries of usually `entry_bytes`, which are valid for `ttl`.
    pub(crate) fn new(bytes: usize, entry_bytes: usize, ttl: Duration) -> Self {
        Self {
            entries: Cache::with_weighter((bytes / entry_bytes).max(1), bytes as u64, ByWeight),
            hasher: Keys::default(),
            stamps: (0..STAMPS).map(|_| AtomicU64::new(0)).collect(),
            ttl,
        }
    }

    /// Returns a valid value.
    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q, now: UnixMillis) -> Option<V> {
        let Entry { value, read, .. } = self.entries.get(key)?;
        now.checked_since(read).is_some_and(|age| age < self.ttl).then_some(value)
    }

    /// Returns a value, even if it is too old.
    pub(crate) fn get_any<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<V> {
        Some(self.entries.get(key)?.value)
    }

    /// Returns a stamp for [`ReadCache::insert`]. To be taken before the value is read.
    pub(crate) fn stamp<Q: Hash + ?Sized>(&self, key: &Q) -> Stamp {
        let index = self.stamp_index(key);
        Stamp { index, value: self.stamps[index].load(Ordering::SeqCst) }
    }

    fn stamp_index<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        self.hasher.hash_one(key) as usize % STAMPS
    }

    /// Caches a value of `weight` bytes that was read at `now`, unless its key was touched since the stamp was taken.
    pub(crate) fn insert(&self, key: K, value: V, weight: usize, now: UnixMillis, stamp: Stamp)
    where
        K: Clone,
    {
        self.entries.insert(key.clone(), Entry { value, read: now, weight: weight as u64 });
        if self.stamps[stamp.index].load(Ordering::SeqCst) != stamp.value {
            self.entries.remove(&key);
        }
    }

    /// Records a write, so that overlapping reads are not cached.
    pub(crate) fn touch<Q: Hash + ?Sized>(&self, key: &Q) {
        self.stamps[self.stamp_index(key)].fetch_add(1, Ordering::SeqCst);
    }

    /// Removes the value after a write.
    pub(crate) fn remove<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) {
        self.touch(key);
        self.entries.remove(key);
    }

    /// The memory of all entries in bytes.
    #[cfg(test)]
    pub(crate) fn weight(&self) -> u64 {
        self.entries.weight()
    }
}
