//! The adapter [`Queued`] over a server with injected faults. The time is simulated.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::storage::queued::{Queued, QueuedSettings};
use enjambre_core::{Batch, Durability, Key, KeyRange, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_testkit::storage::fake_server::{FakeServer, REJECTED, ServerFault};
use enjambre_testkit::storage::{Builder, run_all};
use futures::future::join_all;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SPACE: Space = Space::new("s");
/// The space of the adapter.
const META: Space = Space::new("enjambre_storage");

fn key(name: &str) -> Key {
    Key::new(name.as_bytes().to_vec()).expect("a valid key")
}

/// Returns a batch that conflicts if it is applied twice.
fn insert(name: &str) -> Batch {
    let mut batch = Batch::new();
    batch.require_absent(SPACE, key(name)).put(SPACE, key(name), "v");
    batch
}

fn is_there(server: &FakeServer, name: &str) -> bool {
    server.state().spaces.get(SPACE, &key(name)).is_some()
}

async fn open_in(server: &FakeServer, place: &Place) -> Result<Queued, StorageError> {
    Queued::open(server.clone(), place, Role::Records, QueuedSettings::default()).await
}

async fn open(server: &FakeServer) -> Queued {
    open_in(server, &Place::new("/nonexistent", Tenancy::Shared)).await.expect("the server is up")
}

fn owner(folder: &tempfile::TempDir) -> Place {
    Place::new(folder.path(), Tenancy::Single)
}

fn claims(server: &FakeServer) -> Vec<Key> {
    let all = server.state().spaces.scan(META, &KeyRange::all(), 100, 1 << 20);
    all.into_iter().map(|(key, _)| key).filter(|key| key.as_bytes() != b"identity").collect()
}

struct Fake(Tenancy);

impl Builder for Fake {
    type Place = (FakeServer, tempfile::TempDir);

    fn place(&self) -> Self::Place {
        (FakeServer::default(), tempfile::tempdir().expect("a temporary folder"))
    }

    async fn open(&self, (server, folder): &Self::Place) -> Result<Arc<dyn Storage>, StorageError> {
        Ok(Arc::new(open_in(server, &Place::new(folder.path(), self.0)).await?))
    }

    fn is_shared(&self, _: &Self::Place) -> bool {
        self.0 == Tenancy::Shared
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_and_owned_databases_pass_the_conformance_kit() {
    for tenancy in [Tenancy::Shared, Tenancy::Single] {
        run_all(&Fake(tenancy)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn interrupted_commit_is_applied_exactly_once() {
    let folder = tempfile::tempdir().unwrap();
    for place in [Place::new("/nonexistent", Tenancy::Shared), owner(&folder)] {
        let server = FakeServer::default();
        let storage = open_in(&server, &place).await.unwrap();
        let mut number = 0;
        for durability in [Durability::Buffered, Durability::Durable] {
            for faults in [
                vec![ServerFault::ReplyLost],
                vec![ServerFault::RequestLost],
                vec![ServerFault::Delayed],
                vec![ServerFault::Silent],
                vec![ServerFault::Unavailable],
                vec![ServerFault::Interfered, ServerFault::Interfered],
                // The lookups are interrupted as well.
                vec![ServerFault::ReplyLost, ServerFault::ReplyLost, ServerFault::Delayed],
                vec![ServerFault::RequestLost, ServerFault::ReplyLost],
                vec![
                    ServerFault::Delayed,
                    ServerFault::Delayed,
                    ServerFault::ReplyLost,
                    ServerFault::Contended,
                ],
            ] {
                let text = format!("{place:?} {durability:?} {faults:?}");
                storage.commit(insert("first"), durability).await.ok();
                server.state().faults.extend(faults);
                number += 1;
                let name = format!("{number}");
                let outcome = storage.commit(insert(&name), durability).await;
                server.state().deliver();
                // After a silent server the time for a retry is over.
                match outcome {
                    Ok(()) => assert!(is_there(&server, &name), "{text}"),
                    Err(StorageError::Unavailable { .. }) if text.contains("Silent") => {
                        assert!(!is_there(&server, &name), "{text}");
                    }
                    Err(error) => panic!("{text}: {error}"),
                }
                if durability == Durability::Durable && is_there(&server, &name) {
                    server.state().power_failure();
                    assert!(is_there(&server, &name), "{text}");
                }
                assert!(server.state().faults.is_empty(), "{text}");
            }
        }
        storage.close().await.unwrap();
        assert!(claims(&server).is_empty(), "the close removes the claims");
    }
}

#[tokio::test(start_paused = true)]
async fn outcome_that_cannot_be_looked_up_is_indeterminate() {
    let folder = tempfile::tempdir().unwrap();
    for place in [Place::new("/nonexistent", Tenancy::Shared), owner(&folder)] {
        for fault in [ServerFault::ReplyLost, ServerFault::RequestLost, ServerFault::Delayed] {
            let server = FakeServer::default();
            let storage = open_in(&server, &place).await.unwrap();
            storage.commit(insert("before"), Durability::Durable).await.unwrap();
            let text = format!("{place:?} {fault:?}");
            let is_delayed = matches!(fault, ServerFault::Delayed);
            server.state().faults.push_back(fault);
            let (outcome, ()) = tokio::join!(storage.commit(insert("lost"), Durability::Durable), async {
                while !server.state().faults.is_empty() {
                    tokio::task::yield_now().await;
                }
                server.state().down = true;
            });
            assert!(matches!(outcome, Err(StorageError::Indeterminate { .. })), "{text}: {outcome:?}");
            let error = storage.commit(insert("after"), Durability::Durable).await.unwrap_err();
            assert!(matches!(error, StorageError::Unavailable { .. }), "{text}: {error}");
            server.state().down = false;
            if is_delayed {
                server.state().deliver();
            }
            storage.commit(insert("after"), Durability::Durable).await.expect(&text);
            assert!(is_there(&server, "after"));
            storage.close().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn group_is_one_transaction_and_only_batches_at_fault_fail() {
    let server = FakeServer::default();
    let storage = open(&server).await;
    storage.commit(insert("there"), Durability::Buffered).await.unwrap();
    server.state().arrived.clear();
    let names = ["a", "b", "there", "a", "c"];
    let outcomes = join_all(names.map(|name| storage.commit(insert(name), Durability::Buffered))).await;
    let applied: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(applied, [true, true, false, false, true]);
    for outcome in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(outcome, StorageError::Conflict), "{outcome}");
    }
    let expected = [(5, 5, Durability::Buffered), (4, 4, Durability::Buffered)];
    assert_eq!(server.state().arrived, expected, "the group, and the group without the conflicting batch");

    let mut rejected = Batch::new();
    rejected.put(SPACE, Key::new(REJECTED).unwrap(), "v");
    let batches = [insert("d"), rejected, insert("e")];
    let outcomes = join_all(batches.map(|batch| storage.commit(batch, Durability::Buffered))).await;
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(StorageError::Full { .. })), "{outcomes:?}");

    // The group, and then the first batch alone, meet a lock. The first one comes last.
    server.state().faults.extend([ServerFault::Contended, ServerFault::Contended]);
    let names = ["f", "g"];
    let outcomes = join_all(names.map(|name| storage.commit(insert(name), Durability::Buffered))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    storage.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn group_respects_the_limits_of_the_server() {
    let server = FakeServer::default();
    let storage = open(&server).await;
    let large = |name: usize| {
        let mut batch = Batch::new();
        for index in 0..1800 {
            batch.put(SPACE, key(&format!("{name} {index}")), "v");
        }
        batch
    };
    server.state().arrived.clear();
    let outcomes = join_all((0..5).map(|name| storage.commit(large(name), Durability::Buffered))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let writes: Vec<usize> = server.state().arrived.iter().map(|(_, writes, _)| *writes).collect();
    // One more for the claim; the first transaction makes it.
    assert_eq!(writes, [1, 3601, 3601, 1801]);
    storage.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn buffered_commits_do_not_wait_for_a_durable_one() {
    let server = FakeServer::default();
    let storage = open(&server).await;
    storage.commit(insert("first"), Durability::Durable).await.unwrap();
    storage.commit(insert("second"), Durability::Buffered).await.unwrap();
    server.state().faults.push_back(ServerFault::Silent);
    let durable = storage.commit(insert("durable"), Durability::Durable);
    let buffered = async {
        while !server.state().faults.is_empty() {
            tokio::task::yield_now().await;
        }
        let began = tokio::time::Instant::now();
        storage.commit(insert("buffered"), Durability::Buffered).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    };
    let (durable, ()) = tokio::join!(durable, buffered);
    assert!(matches!(durable, Err(StorageError::Unavailable { .. })), "{durable:?}");
    storage.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lost_claim_of_one_of_several_writers_is_replaced() {
    let server = FakeServer::default();
    let storage = open(&server).await;
    storage.commit(insert("a"), Durability::Durable).await.unwrap();
    storage.sync().await.unwrap();
    // The claim of a buffered commit is lost in a power failure, too.
    storage.commit(insert("b"), Durability::Buffered).await.unwrap();
    server.state().power_failure();
    assert!(!is_there(&server, "b"));
    storage.commit(insert("b"), Durability::Buffered).await.unwrap();
    for claim in claims(&server) {
        let mut state = server.state();
        state.spaces.apply(&enjambre_core::Write::Delete(META, claim));
    }
    storage.commit(insert("c"), Durability::Durable).await.unwrap();
    assert!(is_there(&server, "b") && is_there(&server, "c"));
    storage.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn emptied_server_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    for place in [Place::new("/nonexistent", Tenancy::Shared), owner(&folder)] {
        let server = FakeServer::default();
        let storage = open_in(&server, &place).await.unwrap();
        storage.commit(insert("a"), Durability::Durable).await.unwrap();
        server.state().empty();
        for durability in [Durability::Durable, Durability::Buffered, Durability::Durable] {
            let error = storage.commit(insert("b"), durability).await.unwrap_err();
            assert!(error.to_string().contains("was emptied or replaced"), "{error}");
        }
        assert!(!is_there(&server, "b"));
        // Another database in its place is not written, either.
        open(&server).await.close().await.unwrap();
        let error = storage.commit(insert("b"), Durability::Durable).await.unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
        storage.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn database_has_one_owner_and_a_lost_owner_cannot_write() {
    let server = FakeServer::default();
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = open_in(&server, &owner(&here)).await.unwrap();
    first.commit(insert("a"), Durability::Buffered).await.unwrap();
    server.state().power_failure();
    assert!(is_there(&server, "a"), "commits of an owner are durable");
    for folder in [&here, &there] {
        let error = open_in(&server, &owner(folder)).await.unwrap_err();
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    }
    // The owner cannot renew its claim, because all its transactions are lost. The new owner connects in another way.
    let isolated = FakeServer::default();
    let claim = server.state().spaces.get(META, &key("owner")).cloned().unwrap();
    isolated.state().spaces = server.state().spaces.clone();
    let began = tokio::time::Instant::now();
    let second = open_in(&isolated, &owner(&there)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(70), "{:?}", began.elapsed());
    assert_ne!(isolated.state().spaces.get(META, &key("owner")), Some(&claim));
    server.state().spaces = isolated.state().spaces.clone();
    for batch in [insert("b"), Batch::new()] {
        let error = first.commit(batch, Durability::Durable).await.unwrap_err();
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    }
    first.close().await.unwrap();
    second.commit(insert("b"), Durability::Buffered).await.unwrap();
    second.close().await.unwrap();
    open_in(&isolated, &owner(&here)).await.unwrap().close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn restart_in_the_same_directory_does_not_wait_and_a_restored_backup_is_detected() {
    let server = FakeServer::default();
    let folder = tempfile::tempdir().unwrap();
    let first = open_in(&server, &owner(&folder)).await.unwrap();
    first.commit(insert("a"), Durability::Durable).await.unwrap();
    let crashed = server.state().spaces.clone();
    first.close().await.unwrap();
    server.state().spaces = crashed;
    let began = tokio::time::Instant::now();
    let second = open_in(&server, &owner(&folder)).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    // A backup is restored beneath the owner.
    let backup = server.state().spaces.clone();
    second.commit(insert("b"), Durability::Durable).await.unwrap();
    server.state().spaces = backup;
    let error = second.commit(insert("c"), Durability::Durable).await.unwrap_err();
    assert!(error.to_string().contains("lost acknowledged commits"), "{error}");
    second.close().await.unwrap();
    // While the outcome of a commit is looked up.
    let third = open_in(&server, &owner(&folder)).await.unwrap();
    let backup = server.state().spaces.clone();
    third.commit(insert("d"), Durability::Durable).await.unwrap();
    server.state().spaces = backup;
    server.state().faults.push_back(ServerFault::RequestLost);
    let error = third.commit(insert("e"), Durability::Durable).await.unwrap_err();
    assert!(error.to_string().contains("lost acknowledged commits"), "{error}");
    third.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn other_roles_and_newer_formats_are_refused() {
    let server = FakeServer::default();
    open(&server).await.close().await.unwrap();
    let place = Place::new("/nonexistent", Tenancy::Shared);
    let content = Queued::open(server.clone(), &place, Role::Content, QueuedSettings::default()).await;
    assert!(matches!(content, Err(StorageError::Corrupt { .. })), "{content:?}");
    let identity = server.state().spaces.get(META, &key("identity")).cloned().unwrap();
    // The format is the first value of the map, a small integer.
    let newer: Bytes = {
        let position = identity.windows(7).position(|found| found == b"format\x01").unwrap();
        let mut bytes = identity.to_vec();
        bytes[position + 6] = 2;
        bytes.into()
    };
    server.state().spaces.apply(&enjambre_core::Write::Put(META, key("identity"), newer));
    let error = open_in(&server, &place).await.unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    server.state().spaces.apply(&enjambre_core::Write::Put(META, key("identity"), identity.slice(1..)));
    let error = open_in(&server, &place).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn opening_waits_for_the_server_and_ends() {
    let server = FakeServer::default();
    server.state().down = true;
    let place = Place::new("/nonexistent", Tenancy::Shared);
    let error = open_in(&server, &place).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
    let (storage, ()) = tokio::join!(open_in(&server, &place), async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        server.state().down = false;
    });
    storage.unwrap().close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn close_makes_buffered_commits_durable_or_fails() {
    let server = FakeServer::default();
    let storage = open(&server).await;
    storage.commit(insert("a"), Durability::Buffered).await.unwrap();
    storage.close().await.unwrap();
    server.state().power_failure();
    assert!(is_there(&server, "a"));
    let storage = open(&server).await;
    storage.commit(insert("b"), Durability::Buffered).await.unwrap();
    server.state().down = true;
    let outcome = storage.close().await;
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
}

/// Writers increment counters while transactions and replies are lost. No acknowledged increment is lost, and none is applied
/// twice.
#[tokio::test(start_paused = true)]
async fn increments_are_applied_once_despite_faults() {
    for seed in 0..40 {
        let server = FakeServer::default();
        let storages = [open(&server).await, open(&server).await];
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut acknowledged, mut unknown) = (0u32, 0u32);
        for round in 0..30 {
            for _ in 0..random.random_range(0..4) {
                let fault = match random.random_range(0..7) {
                    0 => ServerFault::ReplyLost,
                    1 => ServerFault::RequestLost,
                    2 => ServerFault::Delayed,
                    3 => ServerFault::Unavailable,
                    4 => ServerFault::Contended,
                    5 => ServerFault::Silent,
                    _ => ServerFault::Interfered,
                };
                server.state().faults.push_back(fault);
            }
            let before = server.state().spaces.get(SPACE, &key("count")).cloned();
            let increment = || {
                let mut batch = Batch::new();
                match before.clone() {
                    Some(before) => batch.require(SPACE, key("count"), before),
                    None => batch.require_absent(SPACE, key("count")),
                };
                let value =
                    before.as_deref().map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
                batch.put(SPACE, key("count"), (value + 1).to_be_bytes().to_vec());
                batch
            };
            let durability = if round % 2 == 0 { Durability::Durable } else { Durability::Buffered };
            let outcomes =
                join_all(storages.iter().map(|storage| storage.commit(increment(), durability))).await;
            for outcome in outcomes {
                match outcome {
                    Ok(()) => acknowledged += 1,
                    Err(StorageError::Indeterminate { .. }) => unknown += 1,
                    Err(StorageError::Conflict | StorageError::Unavailable { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            server.state().deliver();
        }
        let value = server.state().spaces.get(SPACE, &key("count")).cloned().unwrap();
        let value = u32::from_be_bytes(value[..].try_into().unwrap());
        assert!(
            (acknowledged..=acknowledged + unknown).contains(&value),
            "seed {seed}: {acknowledged} {unknown} {value}"
        );
        assert!(acknowledged > 5, "seed {seed}: {acknowledged}");
    }
}
