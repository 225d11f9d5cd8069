//! A storage with injected faults, for tests of its users.
//!
//! Rules determine the operation, the time and the kind of a fault. Probabilities use a seeded generator, so that a run is
//! reproducible. A fault replaces the operation, except delays and concurrent commits, which precede it, and
//! [`Fault::Indeterminate`] with `applied`, which follows it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use enjambre_core::{Batch, Durability, Key, KeyRange, Limits, Space, Storage, StorageError};

/// An operation with faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Storage::get`].
    Get,
    /// [`Storage::scan`].
    Scan,
    /// [`Storage::commit`].
    Commit,
    /// [`Storage::sync`].
    Sync,
}

/// A kind of fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// [`StorageError::Backend`]; nothing is applied.
    Fail,
    /// [`StorageError::Unavailable`]; nothing is applied.
    Unavailable,
    /// [`StorageError::Full`]; nothing is applied.
    Full,
    /// [`StorageError::Indeterminate`] after a commit or instead of it. Other operations fail as with [`Fault::Fail`].
    Indeterminate {
        /// Whether the commit is applied.
        applied: bool,
    },
    /// The operation runs after this delay.
    Delay(Duration),
    /// Another process commits this batch, then the operation runs.
    ConcurrentCommit(Batch),
}

/// The condition of a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// Every operation.
    Always,
    /// The n-th operation of its kind after the rule is added, from 1.
    Nth(u64),
    /// A random operation with this probability, from 0 to 1.
    Chance(f64),
}

#[derive(Debug)]
struct Rule {
    operation: Operation,
    when: When,
    fault: Fault,
    seen: u64,
}

#[derive(Debug)]
struct Plan {
    rules: Vec<Rule>,
    random: StdRng,
    count: u64,
}

/// A storage with faults. Without rules it behaves like the wrapped storage.
#[derive(Debug)]
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    plan: Mutex<Plan>,
}

impl FaultyStorage {
    /// Wraps a storage. The seed determines all random faults.
    pub fn new(inner: Arc<dyn Storage>, seed: u64) -> Self {
        let plan = Plan { rules: Vec::new(), random: StdRng::seed_from_u64(seed), count: 0 };
        Self { inner, plan: Mutex::new(plan) }
    }

    /// Adds a rule for further operations. The first matching rule wins.
    pub fn add(&self, operation: Operation, when: When, fault: Fault) {
        self.plan.lock().rules.push(Rule { operation, when, fault, seen: 0 });
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.plan.lock().rules.clear();
    }

    /// The number of faults so far.
    pub fn faults_met(&self) -> u64 {
        self.plan.lock().count
    }

    fn next(&self, operation: Operation) -> Option<Fault> {
        let mut guard = self.plan.lock();
        let Plan { rules, random, count } = &mut *guard;
        let mut chosen = None;
        for rule in rules.iter_mut().filter(|rule| rule.operation == operation) {
            rule.seen += 1;
            let applies = match rule.when {
                When::Always => true,
                When::Nth(n) => rule.seen == n,
                When::Chance(chance) => random.random::<f64>() < chance,
            };
            if applies && chosen.is_none() {
                chosen = Some(rule.fault.clone());
            }
        }
        *count += u64::from(chosen.is_some());
        chosen
    }

    /// Chooses and applies the fault of an operation other than a commit.
    async fn inject(&self, operation: Operation) -> Result<(), StorageError> {
        match self.next(operation) {
            None => Ok(()),
            Some(fault) => self.apply(fault).await,
        }
    }

    async fn apply(&self, fault: Fault) -> Result<(), StorageError> {
        match fault {
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::ConcurrentCommit(batch) => self.inner.commit(batch, Durability::Buffered).await?,
            Fault::Unavailable => {
                return Err(StorageError::Unavailable { reason: "injected fault".to_owned() });
            }
            Fault::Full => return Err(StorageError::Full { source: "injected full disk".into() }),
            Fault::Fail | Fault::Indeterminate { .. } => {
                return Err(StorageError::backend("run the operation", "injected fault"));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Storage for FaultyStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.inject(Operation::Get).await?;
        self.inner.get(space, keys).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.inject(Operation::Scan).await?;
        self.inner.scan(space, range, limit).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        match self.next(Operation::Commit) {
            None => {}
            Some(Fault::Indeterminate { applied }) => {
                if applied {
                    self.inner.commit(batch, durability).await?;
                }
                return Err(StorageError::Indeterminate { source: "injected fault".into() });
            }
            Some(fault) => self.apply(fault).await?,
        }
        self.inner.commit(batch, durability).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.inject(Operation::Sync).await?;
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
    use enjambre_core::Memory;

    const SPACE: Space = Space::new("s");

    fn put(key: u8) -> Batch {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(vec![key]).unwrap(), vec![key]);
        batch
    }

    #[tokio::test]
    async fn rule_injects_its_fault() {
        let storage = FaultyStorage::new(Arc::new(Memory::new()), 1);
        storage.add(Operation::Commit, When::Nth(2), Fault::Full);
        storage.add(Operation::Commit, When::Nth(3), Fault::Indeterminate { applied: true });
        storage.add(Operation::Commit, When::Nth(4), Fault::Indeterminate { applied: false });
        storage.add(Operation::Sync, When::Always, Fault::Fail);
        let mut outcomes = Vec::new();
        for key in 1..=5 {
            outcomes.push(storage.commit(put(key), Durability::Buffered).await);
        }
        assert!(matches!(
            outcomes[..],
            [
                Ok(()),
                Err(StorageError::Full { .. }),
                Err(StorageError::Indeterminate { .. }),
                Err(StorageError::Indeterminate { .. }),
                Ok(())
            ]
        ));
        storage.add(Operation::Scan, When::Nth(1), Fault::ConcurrentCommit(put(9)));
        let stored = storage.scan(SPACE, KeyRange::all(), 10).await.unwrap();
        assert_eq!(stored.iter().map(|(_, value)| value[0]).collect::<Vec<_>>(), [1, 3, 5, 9]);
        assert!(storage.sync().await.is_err());
        assert_eq!(storage.faults_met(), 5);
    }

    #[tokio::test]
    async fn seed_makes_faults_reproducible() {
        let run = async |seed| {
            let storage = FaultyStorage::new(Arc::new(Memory::new()), seed);
            storage.add(Operation::Commit, When::Chance(0.5), Fault::Fail);
            let mut outcomes = Vec::new();
            for _ in 0..64 {
                outcomes.push(storage.commit(put(1), Durability::Buffered).await.is_ok());
            }
            outcomes
        };
        assert_eq!(run(7).await, run(7).await);
        assert_ne!(run(7).await, run(8).await);
    }
}
