//! Connections that fail during a commit: its outcome is looked up, or reported as unknown.

use std::time::Duration;

use enjambre_core::{Durability, KeyRange, StorageError};
use enjambre_storage_postgres::PostgresSettings;
use enjambre_tests::postgres::Server;
use enjambre_tests::wait::TIMEOUT;
use tokio::time::{sleep, timeout};

use crate::fixture::{A, POLL, insert, is_inserted, open_shared, settings};
use crate::proxy::{Fault, Proxy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_commit_outcome_is_looked_up() {
    let Some(server) = Server::shared("interrupted commits in PostgreSQL") else { return };
    let proxy = Proxy::start(server.port()).await;
    for durability in [Durability::Durable, Durability::Buffered] {
        let storage = open_shared(&settings(&proxy.url())).await.unwrap();
        storage.commit(insert(0), durability).await.unwrap();
        *proxy.next_fault.lock() = Some(Fault::AnswerLost);
        storage.commit(insert(1), durability).await.unwrap();
        proxy.fault_occurred.notified().await;
        assert!(is_inserted(&*storage, 1).await, "the acknowledged commit is applied");

        *proxy.next_fault.lock() = Some(Fault::CommitLost);
        storage.commit(insert(2), durability).await.expect("the commit is not applied, and repeated");
        proxy.fault_occurred.notified().await;
        storage.sync().await.unwrap();
        assert_eq!(storage.scan(A, KeyRange::all(), 10).await.unwrap().len(), 3);
        storage.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_without_lookup_is_indeterminate_and_next_succeeds() {
    let Some(server) = Server::shared("commits without lookup in PostgreSQL") else { return };
    let proxy = Proxy::start(server.port()).await;
    let settings = PostgresSettings { timeout: Duration::from_secs(2), ..settings(&proxy.url()) };
    let storage = open_shared(&settings).await.unwrap();
    let mut number = 0;
    for durability in [Durability::Durable, Durability::Buffered] {
        for fault in [Fault::AnswerLost, Fault::CommitLost] {
            storage.commit(insert(number), durability).await.unwrap();
            proxy.disconnect_at_commit(fault);
            let outcome = storage.commit(insert(number + 1), durability).await;
            assert!(matches!(outcome, Err(StorageError::Indeterminate { .. })), "{outcome:?}");
            proxy.fault_occurred.notified().await;
            proxy.accept_again();
            storage.commit(insert(number + 2), durability).await.unwrap();
            let applied = fault == Fault::AnswerLost;
            assert_eq!(is_inserted(&*storage, number + 1).await, applied, "{durability:?} {fault:?}");
            number += 3;
        }
    }
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_with_unknown_durability_fails() {
    let Some(server) = Server::shared("interrupted close of PostgreSQL") else { return };
    let proxy = Proxy::start(server.port()).await;
    let settings = PostgresSettings { timeout: Duration::from_secs(2), ..settings(&proxy.url()) };
    let storage = open_shared(&settings).await.unwrap();
    storage.commit(insert(0), Durability::Buffered).await.unwrap();
    proxy.disconnect_at_commit(Fault::AnswerLost);
    let outcome = timeout(TIMEOUT, storage.close()).await.expect("the close returns");
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_commit_returns_and_storage_recovers() {
    let Some(server) = Server::shared("stalled connection to PostgreSQL") else { return };
    let proxy = Proxy::start(server.port()).await;
    let settings = PostgresSettings { timeout: Duration::from_secs(2), ..settings(&proxy.url()) };
    let storage = open_shared(&settings).await.unwrap();
    storage.commit(insert(0), Durability::Durable).await.unwrap();
    *proxy.next_fault.lock() = Some(Fault::Stall);
    // The server ends the idle session, and then the lookup finds that the commit is not applied. If that takes too long, the
    // outcome is unknown.
    let outcome =
        timeout(TIMEOUT, storage.commit(insert(1), Durability::Durable)).await.expect("the call returns");
    assert!(
        matches!(outcome, Err(StorageError::Unavailable { .. } | StorageError::Indeterminate { .. })),
        "{outcome:?}"
    );
    assert!(!is_inserted(&*storage, 1).await);
    let recovered = timeout(TIMEOUT, async {
        while storage.commit(insert(1), Durability::Durable).await.is_err() {
            sleep(POLL).await;
        }
    });
    recovered.await.expect("the storage recovers");
    storage.close().await.unwrap();
}
