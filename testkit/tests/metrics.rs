//! Counters of [`MeteredStorage`].

use std::sync::Arc;

use enjambre_core::storage::layers::metrics::{ErrorKind, MeteredStorage, Method};
use enjambre_core::{Batch, Durability, Key, KeyRange, Memory, Space, Storage};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

const SPACE: Space = Space::new("s");

fn key(n: u8) -> Key {
    Key::new(vec![n]).expect("a valid key")
}

#[tokio::test]
async fn calls_are_counted_by_method_and_error_kind() {
    let faults = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let storage = MeteredStorage::new(faults.clone(), "test");
    let mut batch = Batch::new();
    batch.require_absent(SPACE, key(1)).put(SPACE, key(1), vec![0; 99]);
    storage.commit(batch.clone(), Durability::Durable).await.unwrap();
    assert!(storage.commit(batch, Durability::Durable).await.is_err());
    faults.add(Operation::Commit, When::Always, Fault::Full);
    assert!(storage.commit(Batch::new(), Durability::Buffered).await.is_err());
    faults.add(Operation::Sync, When::Nth(1), Fault::Unavailable);
    assert!(storage.sync().await.is_err());
    storage.sync().await.unwrap();
    storage.get(SPACE, &[key(1), key(2)]).await.unwrap();
    storage.scan(SPACE, KeyRange::all(), 10).await.unwrap();
    let counted = storage.metrics().snapshot();
    let of = |method: Method| counted[method as usize];
    assert_eq!(counted.map(|method| method.calls()), [1, 1, 1, 2, 2]);
    assert_eq!(counted.map(|method| method.bytes), [101, 100, 0, 101, 0]);
    assert_eq!(of(Method::Durable).errors(ErrorKind::Conflict), 1);
    assert_eq!(of(Method::Buffered).errors(ErrorKind::Full), 1);
    assert_eq!(of(Method::Sync).errors(ErrorKind::Unavailable), 1);
    let error_kinds = [
        ErrorKind::Conflict,
        ErrorKind::Full,
        ErrorKind::Indeterminate,
        ErrorKind::Unavailable,
        ErrorKind::Corrupt,
        ErrorKind::Other,
    ];
    assert_eq!(error_kinds.map(|kind| of(Method::Get).errors(kind)), [0; 6]);
}
