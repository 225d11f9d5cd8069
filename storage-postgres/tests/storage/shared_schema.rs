//! Several processes on one schema: atomicity, isolation and absence of deadlocks.

use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::{Batch, Durability, Key, KeyRange, Space, Storage, StorageError};
use enjambre_storage_postgres::PostgresSettings;
use enjambre_tests::postgres::{Server, fresh_schema};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::fixture::{A, open_shared, settings};

const B: Space = Space::new("b");
const WRITERS: usize = 12;

/// Opens a schema several times, with separate sessions like separate processes.
async fn storages(server: &Server, count: usize) -> Vec<Arc<dyn Storage>> {
    storages_in(fresh_schema(), server, count).await
}

async fn storages_in(schema: String, server: &Server, count: usize) -> Vec<Arc<dyn Storage>> {
    let settings = PostgresSettings { schema: Some(schema), ..settings(&server.url()) };
    let mut storages = Vec::new();
    for _ in 0..count {
        storages.push(open_shared(&settings).await.unwrap());
    }
    storages
}

fn key(name: impl AsRef<[u8]>) -> Key {
    Key::new(name.as_ref().to_vec()).unwrap()
}

async fn value(storage: &dyn Storage, space: Space, key: &Key) -> Option<Bytes> {
    storage.get(space, std::slice::from_ref(key)).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_conditional_commits_have_one_winner() {
    let Some(server) = Server::shared("conditional commits in PostgreSQL") else { return };
    let storages = storages(&server, 3).await;
    for round in 0..20 {
        let prize = key(format!("prize {round}"));
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let (storage, prize) = (storages[writer % 3].clone(), prize.clone());
            tasks.spawn(async move {
                let mut batch = Batch::new();
                batch.require_absent(A, prize.clone()).put(A, prize, vec![writer as u8]);
                batch.put(B, key(format!("{round} {writer}")), "won");
                (writer, storage.commit(batch, Durability::Buffered).await)
            });
        }
        let mut winners = Vec::new();
        for (writer, outcome) in tasks.join_all().await {
            match outcome {
                Ok(()) => winners.push(writer),
                Err(error) => assert!(matches!(error, StorageError::Conflict), "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        for storage in &storages {
            let found = value(&**storage, A, &prize).await.unwrap();
            assert_eq!(found, [winners[0] as u8][..], "all processes read the value of the winner");
            let marks = storage.scan(B, KeyRange::prefix(format!("{round} ").as_bytes()), 100).await.unwrap();
            assert_eq!(marks.len(), 1, "no other batch is applied");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_increments_lose_no_update() {
    const EACH: u32 = 8;
    let Some(server) = Server::shared("concurrent increments in PostgreSQL") else { return };
    let storages = storages(&server, 2).await;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storages[writer % 2].clone();
        tasks.spawn(async move {
            // Half of the writers access the two counters in the opposite order.
            let counters = [(A, key("x")), (B, key("y"))];
            for _ in 0..EACH {
                loop {
                    let mut batch = Batch::new();
                    let order = if writer % 4 < 2 { [0, 1] } else { [1, 0] };
                    for (space, key) in order.map(|index| &counters[index]) {
                        let before = value(&*storage, *space, key).await;
                        match before.clone() {
                            Some(before) => batch.require(*space, key.clone(), before),
                            None => batch.require_absent(*space, key.clone()),
                        };
                        let before =
                            before.map_or(0, |bytes| u32::from_be_bytes(bytes[..].try_into().unwrap()));
                        batch.put(*space, key.clone(), (before + 1).to_be_bytes().to_vec());
                    }
                    match storage.commit(batch, Durability::Buffered).await {
                        Ok(()) => break,
                        Err(error) => assert!(matches!(error, StorageError::Conflict), "{error}"),
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    for (space, name) in [(A, "x"), (B, "y")] {
        let found = value(&*storages[0], space, &key(name)).await.unwrap();
        assert_eq!(u32::from_be_bytes(found[..].try_into().unwrap()), WRITERS as u32 * EACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_condition_holds_until_the_commit() {
    let Some(server) = Server::shared("absent keys in PostgreSQL") else { return };
    let storages = storages(&server, 2).await;
    for round in 0..60 {
        // Each batch requires that the key of the other one is absent.
        let (flag, guest) = (key(format!("flag {round}")), key(format!("guest {round}")));
        let mut first = Batch::new();
        first.require_absent(A, guest.clone()).put(A, flag.clone(), "f");
        let mut second = Batch::new();
        second.require_absent(A, flag.clone()).put(A, guest.clone(), "g");
        let (first, second) = tokio::join!(
            storages[0].commit(first, Durability::Buffered),
            storages[1].commit(second, Durability::Buffered)
        );
        let applied = [&first, &second].into_iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(applied, 1, "exactly one is applied: {first:?}, {second:?}");
        let stored = [value(&*storages[0], A, &flag).await, value(&*storages[1], A, &guest).await];
        assert_eq!(stored.iter().flatten().count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_with_opposite_key_orders_commit() {
    let Some(server) = Server::shared("opposite key orders in PostgreSQL") else { return };
    let storages = storages(&server, 2).await;
    let mut tasks = JoinSet::new();
    for (which, storage) in storages.iter().enumerate() {
        for task in 0..4u8 {
            let storage = storage.clone();
            tasks.spawn(async move {
                for round in 0..10u8 {
                    // Both storages write the same keys: one puts the keys that the other deletes.
                    let mut batch = Batch::new();
                    for number in 0..20u8 {
                        if (usize::from(number) + which).is_multiple_of(2) {
                            batch.put(A, key([number]), vec![task, round]);
                        } else {
                            batch.delete(A, key([number]));
                        }
                    }
                    storage.commit(batch, Durability::Buffered).await.unwrap();
                }
            });
        }
    }
    tasks.join_all().await;
    let page = storages[0].scan(A, KeyRange::all(), 100).await.unwrap();
    assert_eq!(page.len(), 10, "the last batch is applied completely");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_batches_do_not_deadlock() {
    const KEYS: u8 = 10;
    let Some(server) = Server::start("PostgreSQL deadlocks", "deadlock_timeout = 50ms") else { return };
    let storages = storages(&server, 3).await;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storages[writer % 3].clone();
        let mut random = SmallRng::seed_from_u64(writer as u64);
        tasks.spawn(async move {
            for _ in 0..25 {
                let mut batch = Batch::new();
                for _ in 0..random.random_range(2..8) {
                    let space = if random.random() { A } else { B };
                    let key = key([random.random_range(0..KEYS)]);
                    match random.random_range(0..5) {
                        0 => batch.require_absent(space, key),
                        1 => batch.require(space, key, "v"),
                        2 => batch.delete(space, key),
                        _ => batch.put(space, key, "v"),
                    };
                }
                let durability = if random.random() { Durability::Durable } else { Durability::Buffered };
                match storage.commit(batch, durability).await {
                    // A buffered commit times out early if the disk is slow.
                    Ok(()) | Err(StorageError::Conflict | StorageError::Unavailable { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    let log = server.log();
    assert!(!log.contains("deadlock detected"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_with_removed_row_registers_again() {
    let Some(server) = Server::shared("removed writers in PostgreSQL") else { return };
    let schema = fresh_schema();
    let storage = storages_in(schema.clone(), &server, 1).await.remove(0);
    let mut batch = Batch::new();
    batch.put(A, key("k"), "v");
    storage.commit(batch.clone(), Durability::Durable).await.unwrap();
    server.sql(&format!("DELETE FROM {schema}.space_enjambre_storage WHERE key <> 'identity'"));
    storage.commit(batch, Durability::Durable).await.unwrap();
    storage.sync().await.unwrap();
}
