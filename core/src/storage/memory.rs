//! An in-memory storage: the reference implementation for tests, and the disk of simulations.
//!
//! The data of [`Memory::new`] is dropped with it. A [`Disk`] outlives the storages opened on it. Opening it again simulates a
//! restart after a crash, and [`Disk::power_cut`] reverts commits that were not synced.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use super::Storage;
use super::engine::page_of;
use super::error::StorageError;
use super::value::{Batch, Condition, Durability, Key, KeyRange, Limits, MIN_WRITES, Space, Write};

/// The default limits.
const LIMITS: Limits = Limits {
    max_value: 1024 * 1024,
    max_batch: 32 * 1024 * 1024,
    max_writes: MIN_WRITES,
    max_page_bytes: 1024 * 1024,
};

/// The sorted entries of all spaces, without durability.
#[derive(Debug, Clone, Default)]
pub struct Spaces(BTreeMap<Space, BTreeMap<Bytes, Bytes>>);

impl Spaces {
    /// Returns the value of a key.
    pub fn get(&self, space: Space, key: &Key) -> Option<&Bytes> {
        self.0.get(&space)?.get(key.as_bytes())
    }

    /// Returns a page of the entries in a range.
    pub fn scan(&self, space: Space, range: &KeyRange, limit: usize, max_bytes: usize) -> Vec<(Key, Bytes)> {
        // `BTreeMap::range` panics if the end is before the start.
        let Some(entries) = self.0.get(&space).filter(|_| !range.is_empty()) else { return Vec::new() };
        let entries = entries
            .range::<[u8], _>(range.bounds())
            .filter_map(|(key, value)| Some(Ok((Key::new(key.clone()).ok()?, value.clone()))));
        let Ok::<_, Infallible>(page) = page_of(entries, limit, max_bytes);
        page
    }

    /// Returns whether a condition holds.
    pub fn holds(&self, condition: &Condition) -> bool {
        let (space, key) = condition.target();
        self.get(space, key) == condition.value()
    }

    /// Applies a write and returns the previous value.
    pub fn apply(&mut self, write: &Write) -> Option<Bytes> {
        let (space, key) = write.target();
        self.set(space, key.as_bytes(), write.value().cloned())
    }

    fn set(&mut self, space: Space, key: &[u8], value: Option<Bytes>) -> Option<Bytes> {
        let entries = self.0.entry(space).or_default();
        match value {
            // Copied, because a slice would keep the whole buffer of the caller alive.
            Some(value) => entries.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(&value)),
            None => entries.remove(key),
        }
    }
}

/// The previous values of the keys written by each commit since the last sync.
type Unsynced = Vec<Vec<(Space, Bytes, Option<Bytes>)>>;

#[derive(Debug, Default)]
struct State {
    /// The number of openings. Storages of earlier openings are closed.
    generation: u64,
    spaces: Spaces,
    /// `None` for [`Memory::new`], whose disk is not accessible and cannot lose power.
    unsynced: Option<Unsynced>,
}

/// An in-memory disk that outlives the storages opened on it.
#[derive(Clone)]
pub struct Disk {
    state: Arc<RwLock<State>>,
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        let state = State { unsynced: Some(Unsynced::new()), ..State::default() };
        Self { state: Arc::new(RwLock::new(state)) }
    }

    /// Opens the disk with all committed data, as after a restart of the process. Storages opened before are closed, as if their
    /// process was killed.
    pub fn open(&self) -> Memory {
        let mut state = self.state.write();
        state.generation += 1;
        Memory {
            disk: self.clone(),
            generation: state.generation,
            closed: AtomicBool::new(false),
            limits: LIMITS,
        }
    }

    /// Simulates a power failure: reverts all commits since the last sync or durable commit and closes all storages.
    pub fn power_cut(&self) {
        self.power_cut_keeping(0);
    }

    /// Like [`Disk::power_cut`], but keeps the first `commits` commits since the last sync.
    pub fn power_cut_keeping(&self, commits: usize) {
        let mut state = self.state.write();
        state.generation += 1;
        let unsynced = state.unsynced.replace(Unsynced::new()).unwrap_or_default();
        for (space, key, value) in
            unsynced.into_iter().skip(commits).rev().flat_map(|commit| commit.into_iter().rev())
        {
            state.spaces.set(space, &key, value);
        }
    }

    /// The number of commits since the last sync.
    pub fn unsynced(&self) -> usize {
        self.state.read().unsynced.as_ref().map_or(0, Vec::len)
    }

    /// Returns the keys of a space.
    pub fn keys(&self, space: Space) -> Vec<Bytes> {
        self.state
            .read()
            .spaces
            .0
            .get(&space)
            .map_or_else(Vec::new, |entries| entries.keys().cloned().collect())
    }

    /// Returns the number of entries of each space that was written.
    pub fn entries(&self) -> Vec<(Space, usize)> {
        self.state.read().spaces.0.iter().map(|(space, entries)| (*space, entries.len())).collect()
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

/// An in-memory storage.
#[derive(Debug)]
pub struct Memory {
    disk: Disk,
    generation: u64,
    closed: AtomicBool,
    limits: Limits,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty storage. Its data is dropped with it.
    pub fn new() -> Self {
        Disk { state: Arc::default() }.open()
    }

    /// Replaces the limits.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Calls `read` with the current state unless the storage is closed.
    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, StorageError> {
        let state = self.disk.state.read();
        self.check_open(&state)?;
        Ok(read(&state))
    }

    fn check_open(&self, state: &State) -> Result<(), StorageError> {
        if self.closed.load(Ordering::Acquire) || state.generation != self.generation {
            return Err(StorageError::Closed);
        }
        Ok(())
    }
}

#[async_trait]
impl Storage for Memory {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.read(|state| keys.iter().map(|key| state.spaces.get(space, key).cloned()).collect())
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.read(|state| state.spaces.scan(space, &range, limit, self.limits.max_page_bytes))
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let mut guard = self.disk.state.write();
        self.check_open(&guard)?;
        self.limits.check(&batch)?;
        let state = &mut *guard;
        if !batch.conditions.iter().all(|condition| state.spaces.holds(condition)) {
            return Err(StorageError::Conflict);
        }
        let mut undo = Vec::new();
        for write in &batch.writes {
            let before = state.spaces.apply(write);
            if state.unsynced.is_some() && durability == Durability::Buffered {
                let (space, key) = write.target();
                undo.push((space, key.clone().into_bytes(), before));
            }
        }
        if let Some(unsynced) = &mut state.unsynced {
            match durability {
                Durability::Buffered => unsynced.push(undo),
                Durability::Durable => unsynced.clear(),
            }
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), StorageError> {
        let mut state = self.disk.state.write();
        self.check_open(&state)?;
        if let Some(unsynced) = &mut state.unsynced {
            unsynced.clear();
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn close(&self) -> Result<(), StorageError> {
        let mut state = self.disk.state.write();
        if self.check_open(&state).is_ok()
            && let Some(unsynced) = &mut state.unsynced
        {
            unsynced.clear();
        }
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: Space = Space::new("s");

    fn put(key: &'static str, value: &'static str) -> Batch {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(key).unwrap(), value);
        batch
    }

    async fn value(storage: &Memory, key: &'static str) -> Option<Bytes> {
        storage.get(SPACE, &[Key::new(key).unwrap()]).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn power_cut_reverts_unsynced_commits_and_crash_does_not() {
        let disk = Disk::default();
        let before = disk.open();
        before.commit(put("a", "1"), Durability::Buffered).await.unwrap();
        before.commit(put("b", "1"), Durability::Durable).await.unwrap();
        before.commit(put("a", "2"), Durability::Buffered).await.unwrap();
        before.commit(put("a", "3"), Durability::Buffered).await.unwrap();
        before.commit(put("c", "3"), Durability::Buffered).await.unwrap();
        let after_crash = disk.open();
        assert!(matches!(before.sync().await, Err(StorageError::Closed)));
        assert_eq!(value(&after_crash, "a").await.unwrap(), "3");
        disk.power_cut();
        assert!(matches!(after_crash.sync().await, Err(StorageError::Closed)));
        let after_cut = disk.open();
        assert_eq!(value(&after_cut, "a").await.unwrap(), "1");
        assert_eq!(value(&after_cut, "b").await.unwrap(), "1");
        assert_eq!(value(&after_cut, "c").await, None);
    }

    #[tokio::test]
    async fn power_cut_can_keep_first_unsynced_commits() {
        let disk = Disk::new();
        let storage = disk.open();
        storage.commit(put("a", "1"), Durability::Durable).await.unwrap();
        for number in ["2", "3", "4"] {
            storage.commit(put("a", number), Durability::Buffered).await.unwrap();
        }
        assert_eq!((disk.unsynced(), disk.entries()), (3, vec![(SPACE, 1)]));
        disk.power_cut_keeping(2);
        assert_eq!(value(&disk.open(), "a").await.unwrap(), "3");
        assert_eq!(disk.unsynced(), 0);
    }
}
