//! A storage that does not wait for ever and tries again what is safe to repeat: for databases behind a network.
//!
//! Every call has one deadline, repeats and pauses included. What it means when it passes depends on what was asked:
//! reads and syncs are [`StorageError::Unavailable`], because they changed nothing. A commit that was under way is
//! [`StorageError::Indeterminate`], because it may still be applied, now or in a moment.
//!
//! Repeated are reads and commits that failed with `Unavailable`, which promises that nothing of them was applied. Never
//! repeated are `Conflict` and `Indeterminate`, whose repetition would meet its own writes, and `Full`: room does not come
//! within seconds, and who asked knows better what to give up. A `close` is passed on as it is.
//!
//! A sync is never repeated either. It speaks for what was committed before it, and where it fails, some of that may be
//! gone: a server that crashed has forgotten what was only `Buffered`, and after a failed `fsync` the system takes as
//! written what is not on the disk. The failure may be all that ever tells of it; a sync after it finds a database that
//! works and succeeds. So it goes to the caller, who knows what was to be safe, and can look or write it again. A
//! repeated commit loses no such news: it succeeds only where its own batch is applied, as durable as was asked for, and
//! whoever has to know of what was `Buffered` before asks with a sync.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::RngExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::machine;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// The pause before the first repeat; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How patient a storage is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    /// How long a call may take with all its repeats; none: as long as it takes.
    pub timeout: Option<Duration>,
    /// How often a call is repeated.
    pub retries: u32,
}

/// A storage with deadlines and repeats.
#[derive(Debug)]
pub struct PatientStorage {
    inner: Arc<dyn Storage>,
    patience: Patience,
}

/// A call has no answer yet and its time is up.
struct TimeUp;

/// One call with its deadline.
struct Call {
    deadline: Option<Instant>,
    left: u32,
    pause: Duration,
}

impl Call {
    fn new(patience: Patience) -> Self {
        let deadline = patience.timeout.map(|timeout| Instant::now() + timeout);
        Self { deadline, left: patience.retries, pause: FIRST_PAUSE }
    }

    /// Waits for one attempt.
    async fn attempt<T>(&self, attempt: impl Future<Output = T>) -> Result<T, TimeUp> {
        match self.deadline {
            None => Ok(attempt.await),
            Some(deadline) => timeout_at(deadline, attempt).await.map_err(|_| TimeUp),
        }
    }

    /// After a failure: waits, where it is worth another attempt, and says whether it is.
    async fn again(&mut self, error: &StorageError) -> bool {
        if self.left == 0 || !matches!(error, StorageError::Unavailable { .. }) {
            return false;
        }
        let next = Instant::now() + self.pause.mul_f64(machine::rng().random_range(0.5..=1.0));
        if self.deadline.is_some_and(|deadline| next >= deadline) {
            return false;
        }
        self.left -= 1;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        sleep_until(next).await;
        true
    }
}

impl PatientStorage {
    /// Gives every call a deadline and repeats.
    pub const fn new(inner: Arc<dyn Storage>, patience: Patience) -> Self {
        Self { inner, patience }
    }

    fn no_answer(&self) -> String {
        format!("it gave no answer within {:?}", self.patience.timeout.unwrap_or_default())
    }

    /// Something that changes nothing.
    async fn repeat<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let mut call = Call::new(self.patience);
        loop {
            match call.attempt(attempt()).await {
                Ok(Err(error)) if call.again(&error).await => {}
                Ok(outcome) => return outcome,
                Err(TimeUp) => return Err(StorageError::Unavailable { reason: self.no_answer() }),
            }
        }
    }
}

#[async_trait]
impl Storage for PatientStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.repeat(|| self.inner.get(space, keys)).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.repeat(|| self.inner.scan(space, range.clone(), limit)).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let mut call = Call::new(self.patience);
        loop {
            // Keys and values are shared, not copied.
            let attempt = self.inner.commit(batch.clone(), durability);
            match call.attempt(attempt).await {
                Ok(Err(error)) if call.again(&error).await => {}
                Ok(outcome) => return outcome,
                Err(TimeUp) => return Err(StorageError::Indeterminate { source: self.no_answer().into() }),
            }
        }
    }

    async fn sync(&self) -> Result<(), StorageError> {
        // Once, see above.
        let attempt = Call::new(self.patience).attempt(self.inner.sync()).await;
        attempt.unwrap_or_else(|TimeUp| Err(StorageError::Unavailable { reason: self.no_answer() }))
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
    use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
    use crate::storage::memory::Memory;

    const SPACE: Space = Space::new("s");

    struct Case {
        memory: Arc<Memory>,
        faults: Arc<FaultyStorage>,
        storage: PatientStorage,
    }

    fn case(timeout: Option<u64>, retries: u32) -> Case {
        let memory = Arc::new(Memory::new());
        let faults = Arc::new(FaultyStorage::new(memory.clone(), 1));
        let patience = Patience { timeout: timeout.map(Duration::from_millis), retries };
        Case { memory, storage: PatientStorage::new(faults.clone(), patience), faults }
    }

    fn put(conditional: bool) -> Batch {
        let key = Key::new(vec![1]).unwrap();
        let mut batch = Batch::new();
        if conditional {
            batch.require_absent(SPACE, key.clone());
        }
        batch.put(SPACE, key, vec![1]);
        batch
    }

    async fn entries(storage: &dyn Storage) -> Result<usize, StorageError> {
        Ok(storage.scan(SPACE, KeyRange::all(), 10).await?.len())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_available_is_asked_for_again_with_pauses_until_the_repeats_are_used_up() {
        for operation in [Operation::Get, Operation::Scan, Operation::Commit] {
            let Case { faults, storage, .. } = case(None, 3);
            let ask = async || match operation {
                Operation::Get => storage.get(SPACE, &[Key::new(vec![1]).unwrap()]).await.map(drop),
                Operation::Scan => entries(&storage).await.map(drop),
                _ => storage.commit(put(true), Durability::Durable).await,
            };
            for nth in 1..=3 {
                faults.add(operation, When::Nth(nth), Fault::Unavailable);
            }
            let began = Instant::now();
            ask().await.unwrap();
            // 50, 100 and 200 ms, each cut to as little as a half.
            let waited = began.elapsed();
            assert!((175..=353).contains(&waited.as_millis()), "{operation:?} {waited:?}");
            faults.clear();
            faults.add(operation, When::Always, Fault::Unavailable);
            let before = faults.faults_met();
            let outcome = ask().await;
            assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{operation:?} {outcome:?}");
            assert_eq!(faults.faults_met() - before, 4, "{operation:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sync_that_failed_is_told_and_not_tried_again() {
        let Case { faults, storage, .. } = case(Some(10_000), 5);
        storage.commit(put(false), Durability::Buffered).await.unwrap();
        faults.add(Operation::Sync, When::Nth(1), Fault::Unavailable);
        let outcome = storage.sync().await;
        assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
        assert_eq!(faults.faults_met(), 1);
        storage.sync().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_applied_or_will_fail_again_is_asked_once() {
        for fault in [
            Fault::Indeterminate { applied: true },
            Fault::Indeterminate { applied: false },
            Fault::Full,
            Fault::Fail,
        ] {
            let Case { faults, storage, .. } = case(Some(10_000), 5);
            faults.add(Operation::Commit, When::Always, fault);
            let outcome = storage.commit(put(true), Durability::Buffered).await;
            assert!(outcome.is_err());
            assert_eq!(faults.faults_met(), 1, "{fault:?} {outcome:?}");
            assert_eq!(
                matches!(outcome, Err(StorageError::Indeterminate { .. })),
                matches!(fault, Fault::Indeterminate { .. })
            );
        }
        let Case { storage, .. } = case(Some(10_000), 5);
        storage.commit(put(true), Durability::Buffered).await.unwrap();
        let began = Instant::now();
        let outcome = storage.commit(put(true), Durability::Buffered).await;
        assert!(matches!(outcome, Err(StorageError::Conflict)));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_takes_too_long_is_unavailable_and_a_commit_indeterminate() {
        let Case { memory, faults, storage } = case(Some(1000), 3);
        for operation in [Operation::Get, Operation::Scan, Operation::Sync, Operation::Commit] {
            faults.add(operation, When::Always, Fault::Delay(Duration::from_secs(60)));
        }
        let began = Instant::now();
        let read = entries(&storage).await;
        assert!(matches!(read, Err(StorageError::Unavailable { .. })), "{read:?}");
        let synced = storage.sync().await;
        assert!(matches!(synced, Err(StorageError::Unavailable { .. })), "{synced:?}");
        let committed = storage.commit(put(false), Durability::Durable).await;
        assert!(matches!(committed, Err(StorageError::Indeterminate { .. })), "{committed:?}");
        assert_eq!(began.elapsed().as_secs(), 3, "one deadline each, however many repeats");
        assert_eq!(entries(&*memory).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_bounds_all_repeats_together() {
        let Case { faults, storage, .. } = case(Some(1000), u32::MAX);
        faults.add(Operation::Scan, When::Always, Fault::Unavailable);
        faults.add(Operation::Commit, When::Always, Fault::Unavailable);
        let began = Instant::now();
        assert!(entries(&storage).await.is_err());
        // Nothing was under way when the time was up: it is known that nothing was applied.
        let committed = storage.commit(put(false), Durability::Durable).await;
        assert!(matches!(committed, Err(StorageError::Unavailable { .. })), "{committed:?}");
        assert!(began.elapsed() <= Duration::from_secs(2));
        assert!((6..=14).contains(&faults.faults_met()), "{}", faults.faults_met());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_setting_nothing_is_repeated_and_nothing_given_up() {
        let Case { faults, storage, .. } = case(None, 0);
        faults.add(Operation::Scan, When::Nth(1), Fault::Unavailable);
        faults.add(Operation::Scan, When::Nth(2), Fault::Delay(Duration::from_secs(3600)));
        assert!(entries(&storage).await.is_err());
        assert_eq!(entries(&storage).await.unwrap(), 0);
    }
}
