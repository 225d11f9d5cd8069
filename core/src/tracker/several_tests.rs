//! Several trackers on one database, under the runtime's clock: while trackers come and go, and while the database is away.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::error::TrackerError;
use super::presence::Presence;
use super::testing::{Shelf, World, file};
use crate::catalogue::layout::{FILE_NAMES, FILES, OFFERS, PROVIDERS, SESSIONS, VERSIONS};
use crate::protocol::error::ErrorCode;
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Durability, KeyRange};

const AT: [&str; 3] = ["memory://a:1", "memory://b:1", "memory://c:1"];

/// A database that can be away.
fn database() -> Arc<FaultyStorage> {
    Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1))
}

fn take_away(database: &FaultyStorage) {
    for operation in [Operation::Get, Operation::Scan, Operation::Commit, Operation::Sync] {
        database.add(operation, When::Always, Fault::Unavailable);
    }
}

/// The sessions there are. A peer that begins another one takes the former away.
async fn sessions(database: &FaultyStorage) -> Vec<Vec<u8>> {
    let page = database.scan(SESSIONS, KeyRange::all(), 100).await.unwrap();
    page.into_iter().map(|(key, _)| key.as_bytes().to_vec()).collect()
}

/// What each tracker by itself says of how many have the file.
async fn counts(world: &World, n: u32) -> Vec<usize> {
    let mut counts = Vec::new();
    for at in AT {
        counts.push(world.trackers(&[at]).providers(&file(n)).await.unwrap().len());
    }
    counts
}

async fn peers(world: &World, count: u32) -> (Vec<Presence>, Vec<Arc<Shelf>>) {
    let (mut peers, mut shelves) = (Vec::new(), Vec::new());
    for n in 0..count {
        let shelf = Arc::new(Shelf::default());
        let publication = shelf.outbox(&format!("own {n}"), 100 + n);
        let mut at = AT;
        at.rotate_left(n as usize % 3);
        let peer = world.peer(&shelf, &at);
        peer.publish(&publication).await.unwrap();
        shelf.put(1);
        peer.offer(super::testing::offer(1));
        peers.push(peer);
        shelves.push(shelf);
    }
    (peers, shelves)
}

#[tokio::test(start_paused = true)]
async fn nobody_alive_is_ever_missing_at_any_tracker_while_trackers_come_and_go() {
    let (world, database) = (World::new(), database());
    let mut trackers = Vec::new();
    for at in AT {
        trackers.push(Some(world.tracker(at, &database).await));
    }
    let first = Arc::new(Shelf::default());
    let publisher = world.peer(&first, &AT);
    publisher.publish(&first.outbox("film", 1)).await.unwrap();
    let (peers, _shelves) = peers(&world, 6).await;
    sleep(Duration::from_secs(6)).await;
    let begun = sessions(&database).await;
    for round in 0..6 {
        // One at a time is killed in the moment before it would have written, and comes back half a minute later.
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
    assert_eq!(sessions(&database).await, begun, "nobody had to announce everything again");
    drop((peers, publisher));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_database_is_said_and_survived_with_all_sessions() {
    for outage in [3, 20, 100, 1000] {
        let (world, database) = (World::new(), database());
        for at in AT {
            std::mem::forget(world.tracker(at, &database).await);
        }
        let first = Arc::new(Shelf::default());
        let publisher = world.peer(&first, &AT);
        publisher.publish(&first.outbox("film", 1)).await.unwrap();
        let (peers, shelves) = peers(&world, 6).await;
        sleep(Duration::from_secs(6)).await;
        assert_eq!(counts(&world, 1).await, [7, 7, 7]);
        let begun = sessions(&database).await;

        take_away(&database);
        sleep(Duration::from_secs(outage)).await;
        let asked = world.trackers(&AT).find("nowhere").await.unwrap_err();
        let TrackerError::Refused { error, .. } = &asked else { panic!("{asked:?}") };
        assert_eq!((error.code, error.retry_after_ms), (ErrorCode::Storage, Some(1000)));
        // What is published meanwhile is told to have failed for now, or made once it can be.
        let late = shelves[0].outbox("late", 50);
        let publishing = peers[0].publish(&late);
        let back = async {
            sleep(Duration::from_secs(2)).await;
            database.clear();
            // At once, and for as long as it may take until all have renewed.
            for second in 0..60 {
                assert_eq!(counts(&world, 1).await, [7, 7, 7], "{second} s after {outage} s without");
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
        timeout(Duration::from_secs(60), found).await.expect("what is in the outbox is published");
        assert_eq!(sessions(&database).await, begun, "nobody had to announce everything again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tracker_that_starts_after_an_outage_knows_who_was_alive_before() {
    let (world, database) = (World::new(), database());
    let _a = world.tracker(AT[0], &database).await;
    let b = world.tracker(AT[1], &database).await;
    let shelf = Arc::new(Shelf::default());
    let peer = world.peer(&shelf, &AT[..2]);
    peer.publish(&shelf.outbox("film", 1)).await.unwrap();
    sleep(Duration::from_secs(6)).await;
    take_away(&database);
    sleep(Duration::from_secs(100)).await;
    // The peer is silent from now on, so nothing but the stamp says that it lived.
    drop(peer);
    b.kill().await;
    database.clear();
    sleep(Duration::from_millis(5100)).await;
    let _c = world.tracker(AT[2], &database).await;
    assert_eq!(world.trackers(&AT[2..]).providers(&file(1)).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_sessions_everybody_announces_and_publishes_again_what_a_server_lost() {
    let (world, database) = (World::new(), database());
    let tracker = world.tracker(AT[0], &database).await;
    let (publisher, other) = (Arc::new(Shelf::default()), Arc::new(Shelf::default()));
    let first = world.peer(&publisher, &AT[..1]);
    first.publish(&publisher.outbox("film", 1)).await.unwrap();
    other.put(1);
    let second = world.peer(&other, &AT[..1]);
    assert!(second.connected(Duration::from_secs(5)).await);
    let trackers = world.trackers(&AT[..1]);
    assert_eq!(trackers.providers(&file(1)).await.unwrap().len(), 2);

    // What a replica that took over did not get, and the sessions, which are taken away by hand.
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
    timeout(Duration::from_secs(120), again).await.expect("both have it again");
    assert_eq!(trackers.find("film").await.unwrap().id, file(1));
}

#[tokio::test(start_paused = true)]
async fn an_announcement_that_a_server_lost_is_made_again_within_the_session() {
    let (world, database) = (World::new(), database());
    let _tracker = world.tracker(AT[0], &database).await;
    let publisher = Arc::new(Shelf::default());
    let presence = world.peer(&publisher, &AT[..1]);
    presence.publish(&publisher.outbox("film", 1)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let before = sessions(&database).await;
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
    assert_eq!(sessions(&database).await, before);
}
