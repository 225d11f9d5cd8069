//! Crashes of the server: no acknowledged commit is lost, none is applied twice, and the storage recovers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use enjambre_core::{Durability, Storage, StorageError};
use enjambre_tests::etcd::{OPTIONS, Server};
use enjambre_tests::wait::{TIMEOUT, wait_for};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fixture::{A, insert, is_unavailable, key, open_shared, settings};

/// The delay between the attempts of a retry loop.
const POLL: Duration = Duration::from_millis(20);
const WRITERS: u32 = 6;

/// Returns whether a key is present. Waits until the storage is available.
async fn is_inserted(storage: &dyn Storage, number: u32) -> bool {
    let read = async {
        loop {
            match storage.get(A, &[key(number)]).await {
                Ok(values) => return values[0].is_some(),
                Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error}"),
            }
            sleep(POLL).await;
        }
    };
    timeout(TIMEOUT, read).await.expect("the storage recovers")
}

/// Commits consecutive numbers, each once, until `stop`. Returns the acknowledged ones.
async fn write(
    storage: Arc<dyn Storage>,
    numbers: Arc<AtomicU32>,
    done: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
) -> Vec<u32> {
    let mut own = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let durability = if number.is_multiple_of(2) { Durability::Buffered } else { Durability::Durable };
        loop {
            match storage.commit(insert(number, vec![7; 100]), durability).await {
                Ok(()) => break,
                // Not applied. Otherwise the retry is a conflict, and the test fails.
                Err(StorageError::Unavailable { .. }) => sleep(POLL).await,
                Err(StorageError::Indeterminate { .. }) => {
                    if is_inserted(&*storage, number).await {
                        break;
                    }
                }
                Err(error) => panic!("{number}: {error} {error:?}"),
            }
        }
        own.push(number);
        done.fetch_add(1, Ordering::Relaxed);
    }
    own
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_crashes_lose_and_repeat_no_commit() {
    let Some(server) = Server::start("etcd crashes", &OPTIONS) else { return };
    let settings = settings(server.url());
    let storages = [open_shared(&settings).await.unwrap(), open_shared(&settings).await.unwrap()];
    let (numbers, done, stop) = <(Arc<AtomicU32>, Arc<AtomicU32>, Arc<AtomicBool>)>::default();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storages[writer as usize % 2].clone();
        writers.spawn(write(storage, numbers.clone(), done.clone(), stop.clone()));
    }
    let wait_for_commits = || {
        let goal = done.load(Ordering::Relaxed) + 60;
        tokio::task::block_in_place(|| {
            wait_for("commits succeed", TIMEOUT, || done.load(Ordering::Relaxed) >= goal);
        });
    };
    for _ in 0..3 {
        wait_for_commits();
        tokio::task::block_in_place(|| server.kill());
        let read = storages[0].get(A, &[key(0)]).await;
        assert!(is_unavailable(&read), "{read:?}");
        tokio::task::block_in_place(|| server.start_again());
    }
    wait_for_commits();
    stop.store(true, Ordering::Relaxed);
    let acknowledged = timeout(TIMEOUT, writers.join_all()).await.expect("all calls return").concat();
    for number in acknowledged {
        assert!(is_inserted(&*storages[1], number).await, "acknowledged commit {number} is lost");
    }
    for storage in storages {
        storage.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_is_unavailable_without_server_and_recovers() {
    let Some(server) = Server::start("etcd outage", &OPTIONS) else { return };
    let storage = open_shared(&settings(server.url())).await.unwrap();
    tokio::task::block_in_place(|| server.kill());
    let commit = storage.commit(insert(1, vec![1]), Durability::Durable).await;
    assert!(is_unavailable(&commit), "{commit:?}");
    let read = storage.get(A, &[key(1)]).await;
    assert!(is_unavailable(&read), "{read:?}");
    tokio::task::block_in_place(|| server.start_again());
    assert!(!is_inserted(&*storage, 1).await);
    storage.commit(insert(1, vec![1]), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();
}
