//! Commits with unknown outcome.

use std::sync::Arc;

use super::*;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::PinId;
use crate::catalogue::numbers::BLOCK;
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

/// A catalogue's storage, and a function that makes the outcome of the next commit unknown.
fn uncertain(applied: bool) -> (Arc<dyn Storage>, impl Fn()) {
    let faults = Arc::new(FaultyStorage::new(storage(), 1));
    let arm = {
        let faults = faults.clone();
        move || faults.add(Operation::Commit, When::Nth(1), Fault::Indeterminate { applied })
    };
    (faults, arm)
}

#[tokio::test]
async fn commit_with_unknown_outcome_is_applied_once() {
    for applies in [false, true] {
        let (storage, lose_next_outcome) = uncertain(applies);
        let catalogue = open(&storage, START).await;
        let peer = session(&catalogue, 1, START).await;
        lose_next_outcome();
        let published = catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
        assert_eq!((published.version, published.new), (1, true), "applied: {applies}");
        assert_eq!(all(&catalogue, "", 10).await.len(), 1);
        let pin = PinId { file: file(1), by: peer.peer };
        lose_next_outcome();
        catalogue.pin(&pin, START).await.unwrap();
        assert_eq!(catalogue.reserved().await.unwrap().pins, 1);
        lose_next_outcome();
        assert!(catalogue.resize_pin(&pin, 10, 100).await.unwrap());
        assert_eq!(catalogue.reserved().await.unwrap().bytes, 10);
        lose_next_outcome();
        assert!(catalogue.unpin(&pin).await.unwrap());
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
    let pin = PinId { file: file(1), by: peer.peer };
    faults.add(Operation::Commit, When::Always, Fault::Indeterminate { applied: true });
    faults.add(Operation::Sync, When::Always, Fault::Unavailable);
    let failed = |outcome: Result<(), CatalogueError>| {
        assert!(matches!(outcome, Err(CatalogueError::Storage(_))), "{outcome:?}");
    };
    // A new publication, its repetition, which adds no version, and other durable writes.
    failed(catalogue.publish(&peer, &publication("b", file(2)), START).await.map(drop));
    failed(catalogue.publish(&peer, &publication("b", file(2)), START).await.map(drop));
    failed(catalogue.pin(&pin, START).await.map(drop));
    failed(catalogue.authority().await.map(drop));
    assert!(faults.faults_met() <= 8, "{}", faults.faults_met());

    faults.clear();
    assert!(!catalogue.publish(&peer, &publication("b", file(2)), START).await.unwrap().new);
    assert!(!catalogue.pin(&pin, START).await.unwrap().complete);
    catalogue.authority().await.unwrap();
}

#[tokio::test]
async fn numbers_are_unique_despite_unknown_outcomes() {
    let (storage, lose_next_outcome) = uncertain(true);
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
        lose_next_outcome();
        assert!(uncertain_tracker.next_number().await.is_err());
        assert!(used.insert(uncertain_tracker.next_number().await.unwrap()));
    }
}
