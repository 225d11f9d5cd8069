//! Peers that are kept alive, and trackers asked as one, while trackers come and go.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::error::TrackerError;
use super::presence::Presence;
use super::testing::{Shelf, World, endpoint, file, offer};
use super::trackers::Trackers;
use crate::model::identity::KeyPair;
use crate::protocol::error::ErrorCode;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Memory;

const A: &str = "memory://a:1";
const B: &str = "memory://b:1";
const SOON: Duration = Duration::from_secs(5);

async fn count(trackers: &Trackers, n: u32) -> usize {
    match trackers.providers(&file(n)).await {
        Ok(providers) => providers.len(),
        Err(TrackerError::NotFound { .. }) => 0,
        Err(error) => panic!("{error}"),
    }
}

/// Waits, in the clock of the test, until the file has so many providers.
async fn until(trackers: &Trackers, n: u32, wanted: usize) {
    let reached = async {
        while count(trackers, n).await != wanted {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(120), reached)
        .await
        .unwrap_or_else(|_| panic!("file {n} never had {wanted}"));
}

async fn connected(presence: &Presence) {
    assert!(presence.connected(SOON).await, "{:?}", presence.status());
}

#[tokio::test(start_paused = true)]
async fn a_peer_publishes_offers_withdraws_and_leaves() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (publisher, other) = (Arc::new(Shelf::default()), Arc::new(Shelf::default()));
    let presence = world.peer(&publisher, &[A]);
    let published = presence.publish(&publisher.outbox("a", 1)).await.unwrap();
    assert_eq!(published.version, 1);
    let trackers = world.trackers(&[A]);
    assert_eq!(count(&trackers, 1).await, 1);

    other.put(1);
    let second = world.peer(&other, &[A]);
    connected(&second).await;
    until(&trackers, 1, 2).await;
    other.remove(1);
    second.withdraw(file(1));
    until(&trackers, 1, 1).await;
    other.put(1);
    second.offer(offer(1));
    until(&trackers, 1, 2).await;

    // Both stay as long as they live, and go at once when they leave.
    sleep(Duration::from_secs(300)).await;
    assert_eq!(count(&trackers, 1).await, 2);
    second.leave().await;
    assert_eq!(count(&trackers, 1).await, 1);
    presence.leave().await;
    assert_eq!(count(&trackers, 1).await, 0);
}

#[tokio::test(start_paused = true)]
async fn thousands_of_offers_are_announced() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (publisher, copy) = (Arc::new(Shelf::default()), Arc::new(Shelf::default()));
    let presence = world.peer(&publisher, &[A]);
    for n in 0..2000 {
        publisher.outbox(&format!("n{n}"), n);
        copy.put(n);
    }
    presence.publish(&publisher.outbox("last", 5000)).await.unwrap();
    let trackers = world.trackers(&[A]);
    until(&trackers, 1999, 1).await;
    let second = world.peer(&copy, &[A]);
    connected(&second).await;
    let mut listing = trackers.list("n*");
    let mut names = Vec::new();
    while let Some(record) = listing.next().await.unwrap() {
        assert_eq!(record.providers, 2, "{}", record.name);
        names.push(record.name);
    }
    assert_eq!(names.len(), 2000);
    assert!(names.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn a_peer_fails_over_between_trackers_of_one_catalogue_with_its_session() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let first = world.tracker(A, &storage).await;
    let _second = world.tracker(B, &storage).await;
    let shelf = Arc::new(Shelf::default());
    let presence = world.peer(&shelf, &[A, B]);
    presence.publish(&shelf.outbox("a", 1)).await.unwrap();
    connected(&presence).await;
    assert_eq!(presence.status().iter().filter(|tracker| tracker.standby).count(), 1);
    let trackers = world.trackers(&[A, B]);
    assert_eq!(count(&trackers, 1).await, 1);
    first.kill().await;
    for _ in 0..100 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(count(&trackers, 1).await, 1);
    }
    assert_eq!(presence.status().iter().filter(|tracker| tracker.connected).count(), 1);
    let published = presence.publish(&shelf.outbox("b", 2)).await.unwrap();
    assert_eq!(published.version, 1);
    // It comes back and is for when the other one fails.
    let _first = world.tracker(A, &storage).await;
    sleep(Duration::from_secs(20)).await;
    let status = presence.status();
    assert!(status.iter().all(|tracker| tracker.connected), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tracker_that_lost_its_database_gets_everything_again_from_those_who_published_it() {
    let world = World::new();
    let tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (publisher, other) = (Arc::new(Shelf::default()), Arc::new(Shelf::default()));
    let presence = world.peer(&publisher, &[A]);
    presence.publish(&publisher.outbox("a", 1)).await.unwrap();
    other.put(1);
    let second = world.peer(&other, &[A]);
    connected(&second).await;
    let trackers = world.trackers(&[A]);
    until(&trackers, 1, 2).await;
    tracker.kill().await;
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    until(&trackers, 1, 2).await;
    assert_eq!(trackers.find("a").await.unwrap().id, file(1));
}

#[tokio::test(start_paused = true)]
async fn different_catalogues_all_get_what_is_published_and_are_all_asked() {
    let world = World::new();
    let _a = world.tracker(A, &Arc::new(Memory::new())).await;
    let b_storage = Arc::new(Memory::new());
    let b = world.tracker(B, &b_storage).await;
    let shelf = Arc::new(Shelf::default());
    let both = world.peer(&shelf, &[A, B]);
    both.publish(&shelf.outbox("both", 1)).await.unwrap();
    until(&world.trackers(&[A]), 1, 1).await;
    until(&world.trackers(&[B]), 1, 1).await;

    let only = Arc::new(Shelf::default());
    let only_b = world.peer(&only, &[B]);
    only_b.publish(&only.outbox("only b", 2)).await.unwrap();
    only_b.offer(offer(1));
    let trackers = world.trackers(&[A, B]);
    assert_eq!(trackers.find("only b").await.unwrap().id, file(2));
    assert!(matches!(trackers.find("nowhere").await, Err(TrackerError::NotFound { .. })));
    until(&trackers, 1, 2).await;
    let mut listing = trackers.list("");
    let mut names = Vec::new();
    while let Some(record) = listing.next().await.unwrap() {
        names.push(record.name.to_string());
    }
    assert_eq!(names, ["both", "only b"], "what both have is listed once");

    // What is published while one is away reaches it later, from the outbox.
    b.kill().await;
    let published = both.publish(&shelf.outbox("later", 3)).await.unwrap();
    assert_eq!(published.version, 1);
    let _b = world.tracker(B, &b_storage).await;
    until(&world.trackers(&[B]), 3, 1).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_tracker_everything_says_so_and_goes_on_once_there_is_one() {
    let world = World::new();
    let shelf = Arc::new(Shelf::default());
    let presence = world.peer(&shelf, &[A, B]);
    let result = presence.publish(&shelf.outbox("a", 1)).await;
    let Err(TrackerError::Unreachable { reasons }) = result else { panic!("{result:?}") };
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    let trackers = world.trackers(&[A]);
    assert!(matches!(trackers.find("a").await, Err(TrackerError::Unreachable { .. })));
    assert!(matches!(trackers.providers(&file(1)).await, Err(TrackerError::Unreachable { .. })));
    assert!(matches!(trackers.list("").next().await, Err(TrackerError::Unreachable { .. })));
    let none = world.trackers(&[]);
    assert!(none.find("a").await.unwrap_err().to_string().contains("peer.trackers"));
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    until(&trackers, 1, 1).await;
    presence.leave().await;
}

#[tokio::test(start_paused = true)]
async fn leaving_takes_two_seconds_at_most_and_dropping_stops_the_renewals() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let _tracker = world.tracker(A, &storage).await;
    let shelf = Arc::new(Shelf::default());
    let presence = world.peer(&shelf, &[A]);
    presence.publish(&shelf.outbox("a", 1)).await.unwrap();
    drop(presence);
    let trackers = world.trackers(&[A]);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(count(&trackers, 1).await, 0);
    let away = world.peer(&shelf, &["memory://nobody:1"]);
    timeout(Duration::from_millis(2001), away.leave()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_was_restarted_with_its_key_is_one_peer() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (key, shelf) = (KeyPair::generate(), Arc::new(Shelf::default()));
    let before = world.peer_with_key(key.clone(), &shelf, &[A]);
    before.publish(&shelf.outbox("a", 1)).await.unwrap();
    drop(before);
    let after = world.peer_with_key(key, &shelf, &[A]);
    connected(&after).await;
    let trackers = world.trackers(&[A]);
    assert_eq!(count(&trackers, 1).await, 1);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(count(&trackers, 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_prefix_that_means_different_files_in_different_catalogues_is_ambiguous() {
    let world = World::new();
    let _a = world.tracker(A, &Arc::new(Memory::new())).await;
    let _b = world.tracker(B, &Arc::new(Memory::new())).await;
    for (at, last) in [(A, 1), (B, 2)] {
        let shelf = Arc::new(Shelf::default());
        let mut publication = shelf.outbox("x", 1);
        let mut id = [0xcd; 32];
        id[31] = last;
        publication.id = crate::model::id::FileId::from_bytes(id);
        world.peer(&shelf, &[at]).publish(&publication).await.unwrap();
    }
    let result = world.trackers(&[A, B]).find("cdcdcdcd").await;
    let Err(TrackerError::Ambiguous { matches, .. }) = result else { panic!("{result:?}") };
    assert_eq!(matches.len(), 2);
    assert_eq!(world.trackers(&[A]).find("cdcdcdcd").await.unwrap().id.as_bytes()[31], 1);
}

#[tokio::test(start_paused = true)]
async fn all_of_it_can_be_used_from_tasks() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let shelf = Arc::new(Shelf::default());
    let presence = world.peer(&shelf, &[A]);
    let trackers = world.trackers(&[A]);
    let publication = shelf.outbox("a", 1);
    let task = tokio::spawn(async move {
        presence.publish(&publication).await.unwrap();
        let pinned = presence.pin(file(1)).await.unwrap_err();
        assert_eq!(pinned.code(), Some(ErrorCode::Unsupported));
        assert_eq!(trackers.find("a").await.unwrap().id, file(1));
        assert_eq!(trackers.providers(&file(1)).await.unwrap().len(), 1);
        assert!(trackers.list("").next().await.unwrap().is_some());
        assert_eq!(trackers.status().await.len(), 1);
        presence.leave().await;
    });
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_offer_of_a_file_that_is_published_only_later_counts_from_then_on() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (early, publisher) = (Arc::new(Shelf::default()), Arc::new(Shelf::default()));
    early.put(1);
    let first = world.peer(&early, &[A]);
    connected(&first).await;
    let trackers = world.trackers(&[A]);
    assert_eq!(count(&trackers, 1).await, 0);
    let second = world.peer(&publisher, &[A]);
    second.publish(&publisher.outbox("a", 1)).await.unwrap();
    until(&trackers, 1, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_tracker_that_swallows_everything_holds_nobody_up_for_long() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let first = world.tracker(A, &storage).await;
    let _second = world.tracker(B, &storage).await;
    let silent = "memory://silent:1";
    let _listens_only = world.dialer().bind(&endpoint(silent)).await.unwrap();
    let shelf = Arc::new(Shelf::default());
    let presence = world.peer(&shelf, &[silent, A, B]);
    presence.publish(&shelf.outbox("a", 1)).await.unwrap();
    let trackers = world.trackers(&[silent, A, B]);
    let start = Instant::now();
    assert_eq!(trackers.find("a").await.unwrap().id, file(1));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(count(&trackers, 1).await, 1);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // One that was fine falls silent in the middle: the other one on its database is asked.
    first.hang();
    let start = Instant::now();
    assert_eq!(count(&trackers, 1).await, 1);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(count(&trackers, 1).await, 1);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_began_without_its_announcements_gets_them_when_it_goes_on() {
    let world = World::new();
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let _tracker = world.tracker(A, &storage).await;
    let (publisher, other) = (Arc::new(Shelf::default()), Arc::new(Shelf::default()));
    let presence = world.peer(&publisher, &[A]);
    presence.publish(&publisher.outbox("a", 1)).await.unwrap();
    other.put(1);
    // The hello is the first commit, what is announced after it the second.
    storage.add(Operation::Commit, When::Nth(2), Fault::Unavailable);
    let _second = world.peer(&other, &[A]);
    until(&world.trackers(&[A]), 1, 2).await;
    assert_eq!(storage.faults_met(), 1);
}
