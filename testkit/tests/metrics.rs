//! Metrics of [`ObservedStorage`].

use std::sync::Arc;

use enjambre_core::storage::layers::observe::ObservedStorage;
use enjambre_core::storage::metrics::Operation;
use enjambre_core::{Batch, Durability, Key, KeyRange, Memory, Space, Storage};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation as Faulty, When};

const SPACE: Space = Space::new("s");

fn key(n: u8) -> Key {
    Key::new(vec![n]).expect("a valid key")
}

#[tokio::test]
async fn calls_are_counted_by_operation_and_failures_by_kind() {
    let faults = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let storage = ObservedStorage::new(faults.clone(), "test");
    let mut batch = Batch::new();
    batch.require_absent(SPACE, key(1)).put(SPACE, key(1), vec![0; 99]);
    storage.commit(batch.clone(), Durability::Durable).await.unwrap();
    assert!(storage.commit(batch, Durability::Durable).await.is_err());
    faults.add(Faulty::Commit, When::Always, Fault::Full);
    assert!(storage.commit(Batch::new(), Durability::Buffered).await.is_err());
    faults.add(Faulty::Sync, When::Nth(1), Fault::Unavailable);
    assert!(storage.sync().await.is_err());
    storage.sync().await.unwrap();
    storage.get(SPACE, &[key(1), key(2)]).await.unwrap();
    storage.scan(SPACE, KeyRange::all(), 10).await.unwrap();
    let metrics = storage.metrics().unwrap();
    assert_eq!(Operation::ALL.map(|operation| metrics.latencies(operation).count()), [1, 1, 1, 2, 2]);
    let failures: Vec<_> = metrics.failures().filter(|(_, count)| *count > 0).collect();
    assert_eq!(failures, [("full", 1), ("unavailable", 1)]);
    assert_eq!((metrics.conflicts(), metrics.pending()), (1, 0));
}
