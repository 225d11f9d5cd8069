//! Deadlines and retries of [`RetryStorage`].

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::layers::retry::{Retry, RetryStorage};
use enjambre_core::{Batch, Durability, Key, KeyRange, Memory, Space, Storage, StorageError};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};
use tokio::time::Instant;

const SPACE: Space = Space::new("s");

struct Case {
    memory: Arc<Memory>,
    faults: Arc<FaultyStorage>,
    storage: RetryStorage,
}

fn case(timeout: Option<u64>, retries: u32) -> Case {
    let memory = Arc::new(Memory::new());
    let faults = Arc::new(FaultyStorage::new(memory.clone(), 1));
    let settings = Retry { timeout: timeout.map(Duration::from_millis), retries };
    Case { memory, storage: RetryStorage::new(faults.clone(), settings), faults }
}

fn put(conditional: bool) -> Batch {
    let key = Key::new(vec![1]).expect("a valid key");
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
async fn unavailable_call_is_retried_with_backoff_up_to_the_limit() {
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
        // 50, 100 and 200 ms, each reduced by jitter to no less than half.
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
async fn failed_sync_is_not_retried() {
    let Case { faults, storage, .. } = case(Some(10_000), 5);
    storage.commit(put(false), Durability::Buffered).await.unwrap();
    faults.add(Operation::Sync, When::Nth(1), Fault::Unavailable);
    let outcome = storage.sync().await;
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
    assert_eq!(faults.faults_met(), 1);
    storage.sync().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn commit_that_may_be_applied_is_not_retried() {
    for fault in [
        Fault::Indeterminate { applied: true },
        Fault::Indeterminate { applied: false },
        Fault::Full,
        Fault::Fail,
    ] {
        let Case { faults, storage, .. } = case(Some(10_000), 5);
        faults.add(Operation::Commit, When::Always, fault.clone());
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
async fn deadline_makes_read_unavailable_and_commit_indeterminate() {
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
    assert_eq!(began.elapsed().as_secs(), 3, "one deadline for each call");
    assert_eq!(entries(&*memory).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn deadline_includes_all_retries() {
    let Case { faults, storage, .. } = case(Some(1000), u32::MAX);
    faults.add(Operation::Scan, When::Always, Fault::Unavailable);
    faults.add(Operation::Commit, When::Always, Fault::Unavailable);
    let began = Instant::now();
    assert!(entries(&storage).await.is_err());
    // No attempt is in progress at the deadline, so nothing is applied.
    let committed = storage.commit(put(false), Durability::Durable).await;
    assert!(matches!(committed, Err(StorageError::Unavailable { .. })), "{committed:?}");
    assert!(began.elapsed() <= Duration::from_secs(2));
    assert!((6..=14).contains(&faults.faults_met()), "{}", faults.faults_met());
}

#[tokio::test(start_paused = true)]
async fn default_settings_neither_retry_nor_time_out() {
    let Case { faults, storage, .. } = case(None, 0);
    faults.add(Operation::Scan, When::Nth(1), Fault::Unavailable);
    faults.add(Operation::Scan, When::Nth(2), Fault::Delay(Duration::from_secs(3600)));
    assert!(entries(&storage).await.is_err());
    assert_eq!(entries(&storage).await.unwrap(), 0);
}
