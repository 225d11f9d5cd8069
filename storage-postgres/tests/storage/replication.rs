//! Commits on a server whose synchronous replica is unreachable.

use std::time::Duration;

use enjambre_core::{Durability, StorageError};
use enjambre_storage_postgres::PostgresSettings;
use enjambre_tests::postgres::{Server, Stop};
use enjambre_tests::wait::TIMEOUT;
use tokio::time::{sleep, timeout};

use crate::fixture::{POLL, insert, is_inserted, open_shared, settings};

/// Starts a server that waits for a replica that does not exist. Its schema is initialised.
async fn server_without_replica(test: &str) -> Option<(Server, PostgresSettings)> {
    let server = Server::start(test, "")?;
    let settings = settings(&server.url());
    let storage = open_shared(&settings).await.unwrap();
    storage.commit(insert(0), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();
    tokio::task::block_in_place(|| {
        server.set("synchronous_standby_names = 'nowhere'");
        server.stop(Stop::Fast);
        server.start_again();
    });
    Some((server, settings))
}

/// Waits until `count` sessions of the server wait for a replica.
async fn wait_for_waiting_sessions(server: &Server, count: u32) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting = async {
        while tokio::task::block_in_place(|| server.sql(sql)).trim() != count.to_string() {
            sleep(POLL).await;
        }
    };
    timeout(TIMEOUT, waiting).await.expect("the sessions wait for the replica");
}

/// Stops waiting for the replica.
fn disable_replication(server: &Server) {
    server.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    server.sql("SELECT pg_reload_conf()");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_waiting_for_replica_does_not_delay_buffered_ones() {
    let Some((server, settings)) = server_without_replica("PostgreSQL without its replica").await else {
        return;
    };
    // Longer than any other wait of the test.
    let settings = PostgresSettings { timeout: 4 * TIMEOUT, ..settings };
    let storage = open_shared(&settings).await.unwrap();
    let waiting = tokio::spawn({
        let storage = storage.clone();
        async move { storage.commit(insert(1), Durability::Durable).await }
    });
    wait_for_waiting_sessions(&server, 1).await;
    for number in 10..20 {
        let buffered = storage.commit(insert(number), Durability::Buffered);
        timeout(TIMEOUT, buffered).await.expect("a buffered commit does not wait").unwrap();
        assert!(is_inserted(&*storage, number).await);
    }
    let locked = storage.commit(insert(1), Durability::Buffered);
    let (locked, free) = tokio::join!(locked, storage.commit(insert(20), Durability::Buffered));
    assert!(matches!(locked, Err(StorageError::Unavailable { .. })), "its key is locked: {locked:?}");
    free.expect("its key is not locked");
    assert!(!waiting.is_finished(), "the durable commit still waits");
    disable_replication(&server);
    timeout(TIMEOUT, waiting).await.expect("the commit returns").unwrap().unwrap();
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_continues_after_unknown_commit_outcome() {
    let Some((server, settings)) = server_without_replica("PostgreSQL commits without end").await else {
        return;
    };
    let storage =
        open_shared(&PostgresSettings { timeout: Duration::from_secs(2), ..settings }).await.unwrap();
    for number in 1..=2 {
        // A wait for the rows of the previous commit would return `Unavailable`.
        let outcome = storage.commit(insert(number), Durability::Durable).await;
        assert!(matches!(outcome, Err(StorageError::Indeterminate { .. })), "{number}: {outcome:?}");
        storage.commit(insert(number + 10), Durability::Buffered).await.unwrap();
        // Its row locks are released too.
        let repeated = timeout(TIMEOUT, async {
            loop {
                match storage.commit(insert(number), Durability::Buffered).await {
                    // The cancellation may not have reached the server yet.
                    Err(StorageError::Unavailable { .. }) => {}
                    outcome => break outcome,
                }
            }
        });
        let repeated = repeated.await.expect("the commit returns");
        assert!(matches!(repeated, Err(StorageError::Conflict)), "{number}: {repeated:?}");
    }
    // The waiting commits were cancelled.
    wait_for_waiting_sessions(&server, 0).await;
    disable_replication(&server);
    let recovered = timeout(TIMEOUT, async {
        while storage.sync().await.is_err() {
            sleep(POLL).await;
        }
    });
    recovered.await.expect("the commits become durable");
    storage.close().await.unwrap();
}
