//! Crashes and stops of the server: no acknowledged commit is lost, none is applied twice, and every call returns.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use enjambre_core::{Durability, Place, Role, Storage, StorageError, Tenancy};
use enjambre_storage_postgres::open;
use enjambre_tests::postgres::{Server, Stop, USER};
use enjambre_tests::wait::{TIMEOUT, wait_for};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fixture::{A, POLL, insert, is_inserted, key, open_shared, settings};

const WRITERS: u32 = 6;

/// Writers that commit consecutive numbers, each once.
struct Load {
    acknowledged: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    writers: JoinSet<Vec<u32>>,
}

impl Load {
    fn start(storages: &[Arc<dyn Storage>]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (acknowledged, numbers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU32::new(0)));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let storage = storages[writer as usize % storages.len()].clone();
            let (acknowledged, numbers, stopped) = (acknowledged.clone(), numbers.clone(), stopped.clone());
            writers.spawn(async move {
                let mut own = Vec::new();
                while !*stopped.borrow() {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    loop {
                        match storage.commit(insert(number), Durability::Durable).await {
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
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                own
            });
        }
        Self { acknowledged, stop, writers }
    }

    /// Waits for `count` more acknowledged commits.
    async fn wait_for_commits(&self, count: usize) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + count;
        let reached = async {
            while self.acknowledged.load(Ordering::Relaxed) < goal {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TIMEOUT, reached).await.expect("commits succeed");
    }

    /// Stops the writers and returns the acknowledged numbers.
    async fn stop(self) -> Vec<u32> {
        self.stop.send_replace(true);
        timeout(TIMEOUT, self.writers.join_all()).await.expect("all calls return").concat()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_crashes_lose_and_repeat_no_commit() {
    let Some(server) = Server::start("PostgreSQL crashes", "") else { return };
    let settings = settings(&server.url());
    let storages = [open_shared(&settings).await.unwrap(), open_shared(&settings).await.unwrap()];
    let load = Load::start(&storages);
    for how in [Stop::Immediate, Stop::Fast, Stop::Immediate] {
        load.wait_for_commits(60).await;
        let server = &server;
        tokio::task::block_in_place(|| server.stop(how));
        let error = storages[0].get(A, &[key(0)]).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
        tokio::task::block_in_place(|| server.start_again());
    }
    load.wait_for_commits(60).await;
    for number in load.stop().await {
        assert!(is_inserted(&*storages[1], number).await, "acknowledged commit {number} is lost");
    }
    for storage in storages {
        storage.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_to_synchronous_replica_loses_no_commit() {
    let Some(primary) = Server::start("PostgreSQL failover", "") else { return };
    let replica = tokio::task::block_in_place(|| primary.replica("standby"));
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    primary.sql("SELECT pg_reload_conf()");
    // Until then the primary does not wait for the replica.
    tokio::task::block_in_place(|| {
        wait_for("the replica is synchronous", TIMEOUT, || {
            primary.sql("SELECT sync_state FROM pg_stat_replication").trim() == "sync"
        });
    });
    let url =
        format!("postgresql://{USER}@127.0.0.1:{},127.0.0.1:{}/postgres", replica.port(), primary.port());
    let settings = settings(&url);
    let storages = [open_shared(&settings).await.unwrap()];
    let load = Load::start(&storages);
    load.wait_for_commits(60).await;
    tokio::task::block_in_place(|| primary.stop(Stop::Immediate));
    replica.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    tokio::task::block_in_place(|| replica.promote());
    load.wait_for_commits(60).await;
    for number in load.stop().await {
        assert!(is_inserted(&*storages[0], number).await, "acknowledged commit {number} is lost");
    }
    storages[0].close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_commit_overrides_asynchronous_commit_setting() {
    let asynchronous = "synchronous_commit = off\nwal_writer_delay = 10s";
    let Some(server) = Server::start("PostgreSQL with asynchronous commits", asynchronous) else { return };
    let storage = open_shared(&settings(&server.url())).await.unwrap();
    for number in 0..20 {
        storage.commit(insert(number), Durability::Durable).await.unwrap();
    }
    tokio::task::block_in_place(|| {
        server.stop(Stop::Immediate);
        server.start_again();
    });
    for number in 0..20 {
        assert!(is_inserted(&*storage, number).await, "acknowledged commit {number} is lost");
    }
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_without_server_returns() {
    let Some(server) = Server::start("close without PostgreSQL", "") else { return };
    let storage = open_shared(&settings(&server.url())).await.unwrap();
    storage.commit(insert(0), Durability::Durable).await.unwrap();
    tokio::task::block_in_place(|| server.stop(Stop::Fast));
    timeout(TIMEOUT, storage.close()).await.expect("the close returns").expect("all commits were durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_close_continues_and_second_close_waits() {
    let Some(server) = Server::shared("cancelled close of PostgreSQL") else { return };
    let (settings, folder) = (settings(&server.url()), tempfile::tempdir().unwrap());
    for round in 0..5 {
        let storage =
            open(&settings, &Place::new(folder.path(), Tenancy::Single), Role::Records).await.unwrap();
        storage.commit(insert(round), Durability::Buffered).await.unwrap();
        let mut close = Box::pin(storage.close());
        let first = close.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(first.is_pending(), "the close is cancelled before it completes");
        drop(close);
        timeout(TIMEOUT, storage.close()).await.expect("the close returns").unwrap();
        // The lock is released: the next round opens the same schema.
    }
}
