//! A storage that fails on purpose: the wrapper for tests of what runs on top of one.
//!
//! Rules say which operation meets which fault, and when; chances come from a seeded generator, so that a run can
//! be repeated. A fault other than a delay happens instead of the operation, except for
//! [`Fault::Indeterminate`] with `applied`, which happens after it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Storage;
use super::error::StorageError;
use super::value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// The operations that can meet a fault.
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

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// [`StorageError::Backend`]; nothing was applied.
    Fail,
    /// [`StorageError::Unavailable`]; nothing was applied.
    Unavailable,
    /// [`StorageError::Full`]; nothing was applied.
    Full,
    /// [`StorageError::Indeterminate`], after a commit that was applied or instead of it. An operation that
    /// commits nothing fails with [`Fault::Fail`].
    Indeterminate {
        /// Whether the commit was applied nevertheless.
        applied: bool,
    },
    /// The operation is done after this time.
    Delay(Duration),
}

/// When a rule applies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// Each time.
    Always,
    /// Once, at the n-th operation of its kind that the rule sees, from 1.
    Nth(u64),
    /// With this probability, from 0 to 1.
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
    met: u64,
}

/// A storage with faults. Without rules it is the storage beneath.
#[derive(Debug)]
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    plan: Mutex<Plan>,
}

impl FaultyStorage {
    /// Wraps a storage. The seed decides all chances.
    pub fn new(inner: Arc<dyn Storage>, seed: u64) -> Self {
        let plan = Plan { rules: Vec::new(), random: StdRng::seed_from_u64(seed), met: 0 };
        Self { inner, plan: Mutex::new(plan) }
    }

    /// Adds a rule, from the next operation on. The first rule that applies decides.
    pub fn add(&self, operation: Operation, when: When, fault: Fault) {
        self.plan.lock().rules.push(Rule { operation, when, fault, seen: 0 });
    }

    /// Takes all rules away.
    pub fn clear(&self) {
        self.plan.lock().rules.clear();
    }

    /// How many operations met a fault.
    pub fn faults_met(&self) -> u64 {
        self.plan.lock().met
    }

    fn next(&self, operation: Operation) -> Option<Fault> {
        let mut guard = self.plan.lock();
        let Plan { rules, random, met } = &mut *guard;
        let mut chosen = None;
        for rule in rules.iter_mut().filter(|rule| rule.operation == operation) {
            rule.seen += 1;
            let applies = match rule.when {
                When::Always => true,
                When::Nth(n) => rule.seen == n,
                When::Chance(chance) => random.random::<f64>() < chance,
            };
            if applies && chosen.is_none() {
                chosen = Some(rule.fault);
            }
        }
        *met += u64::from(chosen.is_some());
        chosen
    }

    /// Meets the fault of an operation that commits nothing.
    async fn meet(&self, operation: Operation) -> Result<(), StorageError> {
        match self.next(operation) {
            None => Ok(()),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Some(Fault::Unavailable) => Err(unavailable()),
            Some(Fault::Full) => Err(full()),
            Some(Fault::Fail | Fault::Indeterminate { .. }) => Err(fail()),
        }
    }
}

fn fail() -> StorageError {
    StorageError::backend("do as it was told", "a fault on purpose")
}

fn full() -> StorageError {
    StorageError::Full { source: "a full disk on purpose".into() }
}

fn unavailable() -> StorageError {
    StorageError::Unavailable { reason: "a fault on purpose".to_owned() }
}

#[async_trait]
impl Storage for FaultyStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.meet(Operation::Get).await?;
        self.inner.get(space, keys).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.meet(Operation::Scan).await?;
        self.inner.scan(space, range, limit).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let indeterminate = || StorageError::Indeterminate { source: "a fault on purpose".into() };
        match self.next(Operation::Commit) {
            None => {}
            Some(Fault::Fail) => return Err(fail()),
            Some(Fault::Unavailable) => return Err(unavailable()),
            Some(Fault::Full) => return Err(full()),
            Some(Fault::Indeterminate { applied: false }) => return Err(indeterminate()),
            Some(Fault::Indeterminate { applied: true }) => {
                self.inner.commit(batch, durability).await?;
                return Err(indeterminate());
            }
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        }
        self.inner.commit(batch, durability).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.meet(Operation::Sync).await?;
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

    const SPACE: Space = Space::new("s");

    fn put(key: u8) -> Batch {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(vec![key]).unwrap(), vec![key]);
        batch
    }

    #[tokio::test]
    async fn each_fault_happens_where_its_rule_says() {
        let memory = Arc::new(Memory::new());
        let storage = FaultyStorage::new(memory.clone(), 1);
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
        let there = memory.scan(SPACE, KeyRange::all(), 10).await.unwrap();
        assert_eq!(there.iter().map(|(_, value)| value[0]).collect::<Vec<_>>(), [1, 3, 5]);
        assert!(storage.sync().await.is_err());
        assert_eq!(storage.faults_met(), 4);
    }

    #[tokio::test]
    async fn a_seed_repeats_its_faults() {
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
