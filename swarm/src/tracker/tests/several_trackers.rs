//! Tests of several trackers on one database: failover of trackers and outages of the database.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{FakeLibrary, World, file, offer};
use crate::catalogue::layout::{FILE_NAMES, FILES, OFFERS, PROVIDERS, SESSIONS, VERSIONS};
use crate::tracker_client::error::TrackerError;
use crate::tracker_client::presence::Presence;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::{Batch, Durability, KeyRange, Memory, Storage};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

const AT: [&str; 3] = ["memory://a:1", "memory://b:1", "memory://c:1"];

/// A database that can become unavailable.
fn database() -> Arc<FaultyStorage> {
    Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1))
}

fn make_unavailable(database: &FaultyStorage) {
    for operation in [Operation::Get, Operation::Scan, Operation::Commit, Operation::Sync] {
        database.add(operation, When::Always, Fault::Unavailable);
    }
}

/// The open sessions. A new session of a peer replaces the previous one.
pub(super) async fn sessions(database: &dyn Storage) -> Vec<Vec<u8>> {
    let page = database.scan(SESSIONS, KeyRange::all(), 100).await.unwrap();
    page.into_iter().map(|(key, _)| key.as_bytes().to_vec()).collect()
}

/// The number of providers of the file at each tracker.
async fn counts(world: &World, n: u32) -> Vec<usize> {
    let mut counts = Vec::new();
    for at in AT {
        counts.push(world.trackers(&[at]).providers(&file(n)).await.unwrap().len());
    }
    counts
}

async fn peers(world: &World, count: u32) -> (Vec<Presence>, Vec<Arc<FakeLibrary>>) {
    let (mut peers, mut libraries) = (Vec::new(), Vec::new());
    for n in 0..count {
        let library = Arc::new(FakeLibrary::default());
        let publication = library.outbox(&format!("own {n}"), 100 + n);
        let mut at = AT;
        at.rotate_left(n as usize % 3);
        let peer = world.peer(&library, &at);
        peer.publish(&publication).await.unwrap();
        library.put(1);
        peer.offer(offer(1));
        peers.push(peer);
        libraries.push(library);
    }
    (peers, libraries)
}

#[tokio::test(start_paused = true)]
async fn failover_of_trackers_loses_no_provider() {
    let (world, database) = (World::new(), database());
    let mut trackers = Vec::new();
    for at in AT {
        trackers.push(Some(world.tracker(at, &database).await));
    }
    let first = Arc::new(FakeLibrary::default());
    let publisher = world.peer(&first, &AT);
    publisher.publish(&first.outbox("film", 1)).await.unwrap();
    let (peers, _libraries) = peers(&world, 6).await;
    sleep(Duration::from_secs(6)).await;
    let before = sessions(&*database).await;
    for round in 0..6 {
        // One tracker at a time is killed before it writes renewals, and restarts half a minute later.
        trackers[round % 3].take().unwrap().kill().await;
        for _ in 0..30 {
            sleep(Duration::from_secs(1)).await;
            for (place, at) in AT.iter().enumerate() {
                if trackers[place].is_some() {
                    let providers = world.trackers(&[at]).providers(&file(1)).await.unwrap();
                    assert_eq!(providers.len(), 7, "{at} in round {round}");
                }
            }
        }
        trackers[round % 3] = Some(world.tracker(AT[round % 3], &database).await);
    }
    assert_eq!(sessions(&*database).await, before, "no session was replaced");
    drop((peers, publisher));
}

#[tokio::test(start_paused = true)]
async fn sessions_survive_a_database_outage() {
    for outage in [3, 20, 100, 1000] {
        let (world, database) = (World::new(), database());
        for at in AT {
            std::mem::forget(world.tracker(at, &database).await);
        }
        let first = Arc::new(FakeLibrary::default());
        let publisher = world.peer(&first, &AT);
        publisher.publish(&first.outbox("film", 1)).await.unwrap();
        let (peers, libraries) = peers(&world, 6).await;
        // Longer than the period before the outage whose writes may be lost.
        sleep(Duration::from_secs(30)).await;
        assert_eq!(counts(&world, 1).await, [7, 7, 7]);
        let before = sessions(&*database).await;

        make_unavailable(&database);
        sleep(Duration::from_secs(outage)).await;
        let asked = world.trackers(&AT).find("nowhere").await.unwrap_err();
        let TrackerError::Refused { error, .. } = &asked else { panic!("{asked:?}") };
        assert_eq!((error.code, error.retry_after_ms), (ErrorCode::Storage, Some(1000)));
        // A publication during the outage succeeds after it, or is reported as failed and sent later from the outbox.
        let late = libraries[0].outbox("late", 50);
        let publishing = peers[0].publish(&late);
        let back = async {
            sleep(Duration::from_secs(2)).await;
            database.clear();
            // The providers are complete at once, and stay complete until all leases are renewed.
            for second in 0..60 {
                assert_eq!(counts(&world, 1).await, [7, 7, 7], "{second} s after an outage of {outage} s");
                sleep(Duration::from_secs(1)).await;
            }
        };
        let (published, ()) = tokio::join!(publishing, back);
        if let Err(error) = published {
            assert!(matches!(error, TrackerError::Unreachable { .. }), "{error}");
        }
        let found = async {
            while world.trackers(&AT).find("late").await.is_err() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        timeout(Duration::from_secs(60), found).await.expect("the outbox is sent");
        // The peer that published announces all files again.
        let after = sessions(&*database).await;
        let kept = before.iter().filter(|session| after.contains(session)).count();
        assert!(kept >= 6, "{kept} of 7 sessions were kept");
    }
}

#[tokio::test(start_paused = true)]
async fn tracker_started_after_an_outage_knows_live_peers() {
    let (world, database) = (World::new(), database());
    let _a = world.tracker(AT[0], &database).await;
    let b = world.tracker(AT[1], &database).await;
    let library = Arc::new(FakeLibrary::default());
    let peer = world.peer(&library, &AT[..2]);
    peer.publish(&library.outbox("film", 1)).await.unwrap();
    sleep(Duration::from_secs(6)).await;
    make_unavailable(&database);
    sleep(Duration::from_secs(100)).await;
    // The peer does not renew any more, so only the time stamp in the database shows that it was alive.
    drop(peer);
    b.kill().await;
    database.clear();
    sleep(Duration::from_millis(5100)).await;
    let _c = world.tracker(AT[2], &database).await;
    assert_eq!(world.trackers(&AT[2..]).providers(&file(1)).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn lost_sessions_and_files_are_announced_again() {
    let (world, database) = (World::new(), database());
    let tracker = world.tracker(AT[0], &database).await;
    let (publisher, other) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
    let first = world.peer(&publisher, &AT[..1]);
    first.publish(&publisher.outbox("film", 1)).await.unwrap();
    other.put(1);
    let second = world.peer(&other, &AT[..1]);
    assert!(second.wait_connected(Duration::from_secs(5)).await);
    let trackers = world.trackers(&AT[..1]);
    assert_eq!(trackers.providers(&file(1)).await.unwrap().len(), 2);

    // A database replica that takes over may lack the last writes. The sessions are deleted too.
    tracker.kill().await;
    for space in [FILES, VERSIONS, FILE_NAMES, PROVIDERS, OFFERS, SESSIONS] {
        let mut batch = Batch::new();
        for (key, _) in database.scan(space, KeyRange::all(), 100).await.unwrap() {
            batch.delete(space, key);
        }
        database.commit(batch, Durability::Durable).await.unwrap();
    }
    let _tracker = world.tracker(AT[0], &database).await;
    let again = async {
        while trackers.providers(&file(1)).await.map_or(0, |providers| providers.len()) != 2 {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(120), again).await.expect("both are providers again");
    assert_eq!(trackers.find("film").await.unwrap().id, file(1));
}

#[tokio::test(start_paused = true)]
async fn lost_announcement_is_repeated_within_the_session() {
    let (world, database) = (World::new(), database());
    let _tracker = world.tracker(AT[0], &database).await;
    let publisher = Arc::new(FakeLibrary::default());
    let presence = world.peer(&publisher, &AT[..1]);
    presence.publish(&publisher.outbox("film", 1)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let before = sessions(&*database).await;
    for space in [PROVIDERS, OFFERS] {
        let mut batch = Batch::new();
        for (key, _) in database.scan(space, KeyRange::all(), 100).await.unwrap() {
            batch.delete(space, key);
        }
        assert!(!batch.is_empty());
        database.commit(batch, Durability::Durable).await.unwrap();
    }
    let trackers = world.trackers(&AT[..1]);
    sleep(Duration::from_secs(60)).await;
    assert!(trackers.providers(&file(1)).await.unwrap().is_empty());
    sleep(Duration::from_secs(15 * 60)).await;
    assert_eq!(trackers.providers(&file(1)).await.unwrap().len(), 1);
    assert_eq!(sessions(&*database).await, before);
}
