//! Commits with unknown outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::numbers::BLOCK;
use enjambre_core::{Batch, Durability, Key, KeyRange, Limits, Space, StorageError};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

/// A storage that applies one commit, or not, and reports that the outcome is unknown.
#[derive(Debug)]
struct Uncertain {
    inner: Memory,
    armed: AtomicBool,
    applies: bool,
}

#[async_trait]
impl Storage for Uncertain {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.inner.get(space, keys).await
    }
    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.inner.scan(space, range, limit).await
    }
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        if self.armed.swap(false, Ordering::SeqCst) {
            if self.applies {
                self.inner.commit(batch, durability).await?;
            }
            return Err(StorageError::Indeterminate { source: "cut".into() });
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

#[tokio::test]
async fn commit_with_unknown_outcome_is_applied_once() {
    for applies in [false, true] {
        let inner = Memory::new();
        let uncertain = Arc::new(Uncertain { inner, armed: AtomicBool::new(false), applies });
        let storage: Arc<dyn Storage> = uncertain.clone();
        let catalogue = open(&storage, START).await;
        let peer = session(&catalogue, 1, START).await;
        uncertain.armed.store(true, Ordering::SeqCst);
        let published = catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
        assert_eq!((published.version, published.new), (1, true), "applied: {applies}");
        assert_eq!(all(&catalogue, "", 10).await.len(), 1);
        uncertain.armed.store(true, Ordering::SeqCst);
        catalogue.pin(file(1), 10, 100, peer.peer, START).await.unwrap();
        assert_eq!(catalogue.reserved().await.unwrap().bytes, 10);
        uncertain.armed.store(true, Ordering::SeqCst);
        assert!(catalogue.unpin(&file(1)).await.unwrap());
        assert_eq!(catalogue.reserved().await.unwrap().bytes, 0);
    }
}

#[tokio::test]
async fn unknown_durability_is_an_error_after_few_retries() {
    let faults = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faults.clone();
    let catalogue = open(&storage, START).await;
    let peer = session(&catalogue, 1, START).await;
    catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
    faults.add(Operation::Commit, When::Always, Fault::Indeterminate { applied: true });
    faults.add(Operation::Sync, When::Always, Fault::Unavailable);
    let failed = |outcome: Result<(), CatalogueError>| {
        assert!(matches!(outcome, Err(CatalogueError::Storage(_))), "{outcome:?}");
    };
    // A new publication, its repetition, which adds no version, and other durable writes.
    failed(catalogue.publish(&peer, &publication("b", file(2)), START).await.map(drop));
    failed(catalogue.publish(&peer, &publication("b", file(2)), START).await.map(drop));
    failed(catalogue.pin(file(1), 10, 100, peer.peer, START).await.map(drop));
    failed(catalogue.authority().await.map(drop));
    assert!(faults.faults_met() <= 8, "{}", faults.faults_met());

    faults.clear();
    assert!(!catalogue.publish(&peer, &publication("b", file(2)), START).await.unwrap().new);
    assert_eq!(catalogue.pin(file(1), 10, 100, peer.peer, START).await.unwrap().size, 10);
    catalogue.authority().await.unwrap();
}

#[tokio::test]
async fn numbers_are_unique_despite_unknown_outcomes() {
    let inner = Memory::new();
    let uncertain = Arc::new(Uncertain { inner, armed: AtomicBool::new(false), applies: true });
    let storage: Arc<dyn Storage> = uncertain.clone();
    let mut used = std::collections::HashSet::new();
    for round in 0..4 {
        // The earlier trackers stopped as in a crash.
        let trackers = [open(&storage, START).await, open(&storage, START).await];
        for _ in 0..BLOCK + 2 {
            for tracker in &trackers {
                assert!(used.insert(tracker.next_number().await.unwrap()), "round {round}");
            }
        }
        let (a, b) = (open(&storage, START).await, open(&storage, START).await);
        let (a, b) = tokio::join!(a.next_number(), b.next_number());
        assert!(used.insert(a.unwrap()) && used.insert(b.unwrap()));
        let uncertain_tracker = open(&storage, START).await;
        uncertain.armed.store(true, Ordering::SeqCst);
        assert!(uncertain_tracker.next_number().await.is_err());
        assert!(used.insert(uncertain_tracker.next_number().await.unwrap()));
    }
}
