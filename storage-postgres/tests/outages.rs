//! Servers that stop, crash, hang and are replaced: nothing acknowledged is lost, nothing is applied twice, and every
//! call ends in time.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::layers::patience::{Patience, PatientStorage};
use enjambre_core::storage::value::{Batch, Durability, Key, KeyRange, Space};
use enjambre_core::storage::{Role, Storage};
use enjambre_storage_postgres::{PostgresSettings, Tenancy, open};
use enjambre_tests::postgres::{Server, Stop, USER, fresh_schema};
use enjambre_tests::wait::{LONG, wait_for};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const A: Space = Space::new("a");
const WRITERS: u32 = 6;

fn settings(url: &str) -> PostgresSettings {
    PostgresSettings {
        url: url.to_owned().try_into().unwrap(),
        connect_timeout: LONG,
        schema: Some(fresh_schema()),
        connections: 4,
        ..PostgresSettings::default()
    }
}

async fn shared(settings: &PostgresSettings) -> Arc<dyn Storage> {
    open(settings, Path::new("/"), Role::Records, Tenancy::Shared).await.unwrap()
}

fn key(number: u32) -> Key {
    Key::new(number.to_be_bytes().to_vec()).unwrap()
}

/// What is there only if it is applied once.
fn once(number: u32) -> Batch {
    let mut batch = Batch::new();
    batch.require_absent(A, key(number)).put(A, key(number), number.to_be_bytes().to_vec());
    batch
}

async fn is_there(storage: &dyn Storage, number: u32) -> bool {
    let got = timeout(LONG, async {
        loop {
            match storage.get(A, &[key(number)]).await {
                Ok(values) => return values[0].is_some(),
                Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    got.await.expect("reads work again")
}

/// Writers that commit numbers until they are told to stop, each once.
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
                        match storage.commit(once(number), Durability::Durable).await {
                            Ok(()) => break,
                            // Nothing was applied. If something was, the next attempt is a conflict, and the test fails.
                            Err(StorageError::Unavailable { .. }) => sleep(Duration::from_millis(20)).await,
                            // It has to be looked up.
                            Err(StorageError::Indeterminate { .. }) => {
                                if is_there(&*storage, number).await {
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

    /// Waits until so many more were acknowledged.
    async fn more(&self, count: usize) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + count;
        let reached = async {
            while self.acknowledged.load(Ordering::Relaxed) < goal {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, reached).await.expect("commits succeed");
    }

    async fn end(self) -> Vec<u32> {
        self.stop.send_replace(true);
        timeout(LONG, self.writers.join_all()).await.expect("every call ends").concat()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_and_comes_back_loses_nothing_and_applies_nothing_twice() {
    let Some(server) = Server::start("a crash of PostgreSQL", "") else { return };
    let settings = settings(&server.url());
    let storages = [shared(&settings).await, shared(&settings).await];
    let load = Load::start(&storages);
    for how in [Stop::Immediate, Stop::Fast, Stop::Immediate] {
        load.more(60).await;
        let server = &server;
        tokio::task::block_in_place(|| server.stop(how));
        let error = storages[0].get(A, &[key(0)]).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
        tokio::task::block_in_place(|| server.start_again());
    }
    load.more(60).await;
    for number in load.end().await {
        assert!(is_there(&*storages[1], number).await, "{number} was acknowledged and is lost");
    }
    for storage in storages {
        storage.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_has_everything() {
    let Some(primary) = Server::start("a replica of PostgreSQL", "") else { return };
    let replica = tokio::task::block_in_place(|| primary.replica("standby"));
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    primary.sql("SELECT pg_reload_conf()");
    // Before it is one, the primary does not wait for it, and it may lack what was acknowledged.
    tokio::task::block_in_place(|| {
        wait_for("the replica is a synchronous one", LONG, || {
            primary.sql("SELECT sync_state FROM pg_stat_replication").trim() == "sync"
        });
    });
    let url =
        format!("postgresql://{USER}@127.0.0.1:{},127.0.0.1:{}/postgres", replica.port(), primary.port());
    let settings = settings(&url);
    let storages = [shared(&settings).await];
    let load = Load::start(&storages);
    load.more(60).await;
    tokio::task::block_in_place(|| primary.stop(Stop::Immediate));
    replica.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    tokio::task::block_in_place(|| replica.promote());
    load.more(60).await;
    for number in load.end().await {
        assert!(is_there(&*storages[0], number).await, "{number} was acknowledged and is lost");
    }
    storages[0].close().await.unwrap();
}

/// What happens to the bytes of a commit on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    /// The server gets it; the client never hears of it.
    AnswerLost,
    /// The server never gets it.
    CommitLost,
    /// Nothing is passed on any more, and nothing is closed.
    Silence,
}

/// Stands between client and server.
struct Between {
    port: u16,
    /// What is to happen at the next commit.
    next: Arc<Mutex<Option<Mishap>>>,
    /// Something has happened.
    happened: Arc<Notify>,
    /// Nobody gets through any more who has not got through already.
    shut: Arc<AtomicBool>,
}

impl Between {
    async fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let between = Self {
            port: listener.local_addr().unwrap().port(),
            next: Arc::default(),
            happened: Arc::default(),
            shut: Arc::default(),
        };
        let (next, happened, shut) = (between.next.clone(), between.happened.clone(), between.shut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shut.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                tokio::spawn(pass_on(client, server, next.clone(), happened.clone()));
            }
        });
        between
    }

    fn url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// Breaks the connection of the next commit so, and keeps everybody from finding out.
    fn break_for_good(&self, mishap: Mishap) {
        *self.next.lock() = Some(mishap);
        self.shut.store(true, Ordering::Relaxed);
    }

    fn open_again(&self) {
        self.shut.store(false, Ordering::Relaxed);
    }
}

async fn pass_on(
    mut client: TcpStream,
    mut server: TcpStream,
    next: Arc<Mutex<Option<Mishap>>>,
    happened: Arc<Notify>,
) -> Option<()> {
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let bytes = &up[..read.ok().filter(|&read| read > 0)?];
                // What a commit ends with; smaller than a segment, so it is never cut.
                let is_commit = bytes.windows(7).any(|word| word == b"COMMIT\0");
                let mishap = if is_commit { next.lock().take() } else { None };
                if matches!(mishap, None | Some(Mishap::AnswerLost)) {
                    server.write_all(bytes).await.ok()?;
                }
                if let Some(mishap) = mishap {
                    if mishap == Mishap::AnswerLost {
                        // Until the commit was answered: its name is in the answer.
                        let mut answer = Vec::new();
                        while !answer.windows(7).any(|word| word == b"COMMIT\0") {
                            let read = server.read(&mut down).await.ok().filter(|&read| read > 0)?;
                            answer.extend_from_slice(&down[..read]);
                        }
                    }
                    happened.notify_one();
                    if mishap == Mishap::Silence {
                        std::future::pending::<()>().await;
                    }
                    return None;
                }
            }
            read = server.read(&mut down) => {
                let read = read.ok().filter(|&read| read > 0)?;
                client.write_all(&down[..read]).await.ok()?;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_connection_breaks_is_looked_up() {
    let Some(server) = Server::shared("broken connections to PostgreSQL") else { return };
    let between = Between::new(server.port()).await;
    for durability in [Durability::Durable, Durability::Buffered] {
        let storage = shared(&settings(&between.url())).await;
        storage.commit(once(0), durability).await.unwrap();
        *between.next.lock() = Some(Mishap::AnswerLost);
        storage.commit(once(1), durability).await.unwrap();
        between.happened.notified().await;
        assert!(is_there(&*storage, 1).await, "it was applied, and is acknowledged");

        *between.next.lock() = Some(Mishap::CommitLost);
        let error = storage.commit(once(2), durability).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "nothing was applied: {error}");
        between.happened.notified().await;
        assert!(!is_there(&*storage, 2).await);
        storage.commit(once(2), durability).await.expect("it may be repeated");
        storage.sync().await.unwrap();
        assert_eq!(storage.scan(A, KeyRange::all(), 10).await.unwrap().len(), 3);
        storage.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_which_nothing_is_to_be_learnt_is_indeterminate_and_the_next_one_goes_on() {
    let Some(server) = Server::shared("a server of PostgreSQL that is cut off") else { return };
    let between = Between::new(server.port()).await;
    let settings = PostgresSettings { timeout: Duration::from_secs(2), ..settings(&between.url()) };
    let storage = shared(&settings).await;
    let mut number = 0;
    for durability in [Durability::Durable, Durability::Buffered] {
        for mishap in [Mishap::AnswerLost, Mishap::CommitLost] {
            storage.commit(once(number), durability).await.unwrap();
            between.break_for_good(mishap);
            let outcome = storage.commit(once(number + 1), durability).await;
            assert!(matches!(outcome, Err(StorageError::Indeterminate { .. })), "{outcome:?}");
            between.happened.notified().await;
            between.open_again();
            storage.commit(once(number + 2), durability).await.unwrap();
            let applied = mishap == Mishap::AnswerLost;
            assert_eq!(is_there(&*storage, number + 1).await, applied, "{durability:?} {mishap:?}");
            number += 3;
        }
    }
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_cannot_tell_whether_everything_is_durable_says_so() {
    let Some(server) = Server::shared("a close of PostgreSQL that is cut off") else { return };
    let between = Between::new(server.port()).await;
    let settings = PostgresSettings { timeout: Duration::from_secs(2), ..settings(&between.url()) };
    let storage = shared(&settings).await;
    storage.commit(once(0), Durability::Buffered).await.unwrap();
    between.break_for_good(Mishap::AnswerLost);
    let outcome = timeout(LONG, storage.close()).await.expect("it ends");
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_is_given_up_goes_on_and_the_next_one_waits_for_it() {
    let Some(server) = Server::shared("a close of PostgreSQL that is given up") else { return };
    let (settings, folder) = (settings(&server.url()), tempfile::tempdir().unwrap());
    for round in 0..5 {
        let storage = open(&settings, folder.path(), Role::Records, Tenancy::Single).await.unwrap();
        storage.commit(once(round), Durability::Buffered).await.unwrap();
        let mut close = Box::pin(storage.close());
        let first = close.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(first.is_pending(), "it is given up in the middle");
        drop(close);
        timeout(LONG, storage.close()).await.expect("it ends").unwrap();
        // What it held is let go of: the next round opens the same.
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_be_durable_is_so_on_a_server_that_acknowledges_early() {
    let early = "synchronous_commit = off\nwal_writer_delay = 10s";
    let Some(server) = Server::start("a server of PostgreSQL that acknowledges early", early) else { return };
    let storage = shared(&settings(&server.url())).await;
    for number in 0..20 {
        storage.commit(once(number), Durability::Durable).await.unwrap();
    }
    tokio::task::block_in_place(|| {
        server.stop(Stop::Immediate);
        server.start_again();
    });
    for number in 0..20 {
        assert!(is_there(&*storage, number).await, "{number} was acknowledged and is lost");
    }
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patience_bridges_an_outage() {
    let Some(server) = Server::start("patience with PostgreSQL", "") else { return };
    let bare = shared(&settings(&server.url())).await;
    bare.commit(once(0), Durability::Durable).await.unwrap();
    let patience = Patience { timeout: Some(2 * LONG), retries: u32::MAX };
    let patient = PatientStorage::new(bare.clone(), patience);
    tokio::task::block_in_place(|| server.stop(Stop::Fast));

    let keys = [key(0)];
    let mut calls =
        pin!(async { tokio::join!(patient.get(A, &keys), patient.commit(once(1), Durability::Durable)) });
    for _ in 0..3 {
        tokio::select! {
            biased;
            outcome = &mut calls => panic!("there is no server: {outcome:?}"),
            outcome = bare.get(A, &keys) => {
                assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
            }
        }
    }
    let outcome = patient.sync().await;
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "who asks is told: {outcome:?}");
    tokio::task::block_in_place(|| server.start_again());
    let (got, committed) = calls.await;
    assert!(got.unwrap()[0].is_some());
    committed.unwrap();
    patient.sync().await.unwrap();
    assert!(is_there(&*bare, 1).await);
    bare.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_in_mid_commit_holds_nobody_up() {
    let Some(server) = Server::shared("silence of PostgreSQL") else { return };
    let between = Between::new(server.port()).await;
    let settings = PostgresSettings { timeout: Duration::from_secs(2), ..settings(&between.url()) };
    let storage = shared(&settings).await;
    storage.commit(once(0), Durability::Durable).await.unwrap();
    *between.next.lock() = Some(Mishap::Silence);
    // The session that waits for the commit is ended by the server itself, because it is idle; then it is known that
    // nothing was applied. Where that takes too long it is said that it is not known.
    let outcome = timeout(LONG, storage.commit(once(1), Durability::Durable)).await.expect("the call ends");
    assert!(
        matches!(outcome, Err(StorageError::Unavailable { .. } | StorageError::Indeterminate { .. })),
        "{outcome:?}"
    );
    assert!(!is_there(&*storage, 1).await);
    let recovered = timeout(LONG, async {
        while storage.commit(once(1), Durability::Durable).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    recovered.await.expect("commits work again");
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_without_a_server_ends() {
    let Some(server) = Server::start("a close without PostgreSQL", "") else { return };
    let storage = shared(&settings(&server.url())).await;
    storage.commit(once(0), Durability::Durable).await.unwrap();
    tokio::task::block_in_place(|| server.stop(Stop::Fast));
    timeout(LONG, storage.close()).await.expect("it ends").expect("everything was durable");
}

/// A server that waits for a replica which there is not, with a schema that is there already.
async fn waiting_server(test: &str) -> Option<(Server, PostgresSettings)> {
    let server = Server::start(test, "")?;
    let settings = settings(&server.url());
    let storage = shared(&settings).await;
    storage.commit(once(0), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();
    tokio::task::block_in_place(|| {
        server.set("synchronous_standby_names = 'nowhere'");
        server.stop(Stop::Fast);
        server.start_again();
    });
    Some((server, settings))
}

/// Waits until so many sessions of the server wait for a replica.
async fn until_so_many_wait(server: &Server, count: u32) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting = async {
        while tokio::task::block_in_place(|| server.sql(sql)).trim() != count.to_string() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, waiting).await.expect("as many sessions wait for the replica");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_a_replica_holds_up_only_what_must_be_durable_as_well() {
    let Some((server, settings)) = waiting_server("an absent replica of PostgreSQL").await else { return };
    // It waits for longer than anything else here.
    let patient = PostgresSettings { timeout: 4 * LONG, ..settings };
    let storage = shared(&patient).await;
    let waits = tokio::spawn({
        let storage = storage.clone();
        async move { storage.commit(once(1), Durability::Durable).await }
    });
    until_so_many_wait(&server, 1).await;
    for number in 10..20 {
        let buffered = storage.commit(once(number), Durability::Buffered);
        timeout(LONG, buffered).await.expect("it does not wait").unwrap();
        assert!(is_there(&*storage, number).await);
    }
    let held = storage.commit(once(1), Durability::Buffered);
    let (held, free) = tokio::join!(held, storage.commit(once(20), Durability::Buffered));
    assert!(matches!(held, Err(StorageError::Unavailable { .. })), "it needs what is held: {held:?}");
    free.expect("it has nothing to do with that");
    assert!(!waits.is_finished(), "what must be durable still waits");
    server.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    server.sql("SELECT pg_reload_conf()");
    timeout(LONG, waits).await.expect("it ends").unwrap().unwrap();
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_goes_on_after_a_commit_of_which_it_is_not_known_what_became() {
    let Some((server, settings)) = waiting_server("commits that PostgreSQL never ends").await else { return };
    let storage = shared(&PostgresSettings { timeout: Duration::from_secs(2), ..settings }).await;
    for number in 1..=2 {
        // None waits for the rows of the one before: it would be unavailable.
        let outcome = storage.commit(once(number), Durability::Durable).await;
        assert!(matches!(outcome, Err(StorageError::Indeterminate { .. })), "{number}: {outcome:?}");
        storage.commit(once(number + 10), Durability::Buffered).await.unwrap();
        // Nor does anybody else wait for what it wrote.
        let again = timeout(LONG, async {
            loop {
                match storage.commit(once(number), Durability::Buffered).await {
                    // The server may not have been told yet.
                    Err(StorageError::Unavailable { .. }) => {}
                    outcome => break outcome,
                }
            }
        });
        let again = again.await.expect("it ends");
        assert!(matches!(again, Err(StorageError::Conflict)), "{number}: {again:?}");
    }
    // The server was told that nobody waits any more.
    until_so_many_wait(&server, 0).await;
    server.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    server.sql("SELECT pg_reload_conf()");
    let recovered = timeout(LONG, async {
        while storage.sync().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    recovered.await.expect("what waited is durable now");
    storage.close().await.unwrap();
}
