//! Tests of presences and of queries to several trackers during tracker outages.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{FakeLibrary, World, endpoint, file, offer, publication};
use crate::catalogue::layout::{self, LEASES, LeaseRecord, PinId};
use crate::tracker_client::error::TrackerError;
use crate::tracker_client::presence::Presence;
use crate::tracker_client::trackers::Trackers;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::{FileId, KeyPair, KeyRange, Memory, Publication, Storage};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

pub(super) const A: &str = "memory://a:1";
const B: &str = "memory://b:1";
const SOON: Duration = Duration::from_secs(5);

pub(super) async fn count(trackers: &Trackers, n: u32) -> usize {
    match trackers.providers(&file(n)).await {
        Ok(providers) => providers.len(),
        Err(TrackerError::NotFound { .. }) => 0,
        Err(error) => panic!("{error}"),
    }
}

/// Waits until the file has this number of providers.
async fn until(trackers: &Trackers, n: u32, wanted: usize) {
    let reached = async {
        while count(trackers, n).await != wanted {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(120), reached)
        .await
        .unwrap_or_else(|_| panic!("file {n} never had {wanted} providers"));
}

async fn connected(presence: &Presence) {
    assert!(presence.wait_connected(SOON).await, "{:?}", presence.status());
}

/// An announced file that the tracker does not know is published at once, possibly before the caller of `publish` waits.
#[tokio::test(start_paused = true)]
async fn publish_after_announce_reports_new_version() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[A]);
    connected(&presence).await;
    for n in 1..4 {
        let publication = library.outbox("a", n);
        presence.offer(offer(n));
        until(&world.trackers(&[A]), n, 1).await;
        let published = presence.publish(&publication).await.unwrap();
        assert_eq!((published.version, published.new), (n.into(), true));
    }
    let published = presence.publish(&library.outbox("a", 3)).await.unwrap();
    assert_eq!((published.version, published.new), (3, false));
}

#[tokio::test(start_paused = true)]
async fn peer_publishes_offers_withdraws_and_leaves() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (publisher, other) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
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

    // Both are providers while they renew, and cease to be when they leave.
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
    let (publisher, copy) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
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
async fn session_fails_over_within_a_catalogue() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let first = world.tracker(A, &storage).await;
    let _second = world.tracker(B, &storage).await;
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[A, B]);
    presence.publish(&library.outbox("a", 1)).await.unwrap();
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
    let published = presence.publish(&library.outbox("b", 2)).await.unwrap();
    assert_eq!(published.version, 1);
    // The restarted tracker becomes the standby.
    let _first = world.tracker(A, &storage).await;
    sleep(Duration::from_secs(20)).await;
    let status = presence.status();
    assert!(status.iter().all(|tracker| tracker.connected), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn lost_database_is_filled_again_by_publishers() {
    let world = World::new();
    let tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (publisher, other) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
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
async fn all_catalogues_receive_publications_and_queries() {
    let world = World::new();
    let _a = world.tracker(A, &Arc::new(Memory::new())).await;
    let b_storage = Arc::new(Memory::new());
    let b = world.tracker(B, &b_storage).await;
    let library = Arc::new(FakeLibrary::default());
    let both = world.peer(&library, &[A, B]);
    both.publish(&library.outbox("both", 1)).await.unwrap();
    until(&world.trackers(&[A]), 1, 1).await;
    until(&world.trackers(&[B]), 1, 1).await;

    let only = Arc::new(FakeLibrary::default());
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
    assert_eq!(names, ["both", "only b"], "a file of both catalogues is listed once");

    // A publication during an outage of one tracker is sent later from the outbox.
    b.kill().await;
    let published = both.publish(&library.outbox("later", 3)).await.unwrap();
    assert_eq!(published.version, 1);
    let _b = world.tracker(B, &b_storage).await;
    until(&world.trackers(&[B]), 3, 1).await;
}

#[tokio::test(start_paused = true)]
async fn pins_are_listed_without_the_tracker_that_fails() {
    let world = World::new();
    let a = world.tracker(A, &Arc::new(Memory::new())).await;
    let b = world.tracker(B, &Arc::new(Memory::new())).await;
    let key = KeyPair::generate();
    a.service.catalogue().pin(&PinId { file: file(1), by: key.peer_id() }, world.clock.now()).await.unwrap();
    let peer = world.peer_with_key(key, &Arc::default(), &[A, B]);
    connected(&peer).await;
    let (pins, errors) = peer.pins().await.unwrap();
    assert_eq!((pins.len(), errors.len()), (1, 0));
    // First there is a session that fails, then none.
    b.hang();
    for _ in 0..2 {
        let (pins, errors) = peer.pins().await.unwrap();
        assert_eq!((pins[0].id, pins.len(), errors.len()), (file(1), 1, 1));
        assert!(errors[0].to_string().contains(B), "{}", errors[0]);
        sleep(Duration::from_secs(60)).await;
    }
    a.hang();
    assert!(matches!(peer.pins().await, Err(TrackerError::Unreachable { .. })));
}

#[tokio::test(start_paused = true)]
async fn pins_are_complete_if_one_tracker_of_a_catalogue_replies() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let trackers = [world.tracker(A, &storage).await, world.tracker(B, &storage).await];
    let other = world.tracker("memory://c:1", &Arc::new(Memory::new())).await;
    let peer = world.peer(&Arc::default(), &[A, B, "memory://c:1"]);
    connected(&peer).await;
    let [first, second] = trackers;
    first.kill().await;
    sleep(Duration::from_secs(60)).await;
    let (_, errors) = peer.pins().await.unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    second.kill().await;
    sleep(Duration::from_secs(60)).await;
    let (_, errors) = peer.pins().await.unwrap();
    assert_eq!(errors.len(), 1, "one for the catalogue: {errors:?}");
    other.kill().await;
}

#[tokio::test(start_paused = true)]
async fn unreachable_trackers_are_reported_and_retried() {
    let world = World::new();
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[A, B]);
    let result = presence.publish(&library.outbox("a", 1)).await;
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
async fn leave_takes_at_most_two_seconds() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let _tracker = world.tracker(A, &storage).await;
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[A]);
    presence.publish(&library.outbox("a", 1)).await.unwrap();
    drop(presence);
    let trackers = world.trackers(&[A]);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(count(&trackers, 1).await, 0);
    let unconnected = world.peer(&library, &["memory://unused:1"]);
    timeout(Duration::from_millis(2001), unconnected.leave()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn restarted_peer_with_the_same_key_is_one_provider() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (key, library) = (KeyPair::generate(), Arc::new(FakeLibrary::default()));
    let before = world.peer_with_key(key.clone(), &library, &[A]);
    before.publish(&library.outbox("a", 1)).await.unwrap();
    drop(before);
    let after = world.peer_with_key(key, &library, &[A]);
    connected(&after).await;
    let trackers = world.trackers(&[A]);
    assert_eq!(count(&trackers, 1).await, 1);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(count(&trackers, 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn prefix_of_files_in_two_catalogues_is_ambiguous() {
    let world = World::new();
    let _a = world.tracker(A, &Arc::new(Memory::new())).await;
    let _b = world.tracker(B, &Arc::new(Memory::new())).await;
    for (at, last) in [(A, 1), (B, 2)] {
        let library = Arc::new(FakeLibrary::default());
        let mut id = [0xcd; 32];
        id[31] = last;
        let id = FileId::from_bytes(id);
        let publication = Publication { id, ..publication("x", 1) };
        library.queue(&publication);
        world.peer(&library, &[at]).publish(&publication).await.unwrap();
    }
    let result = world.trackers(&[A, B]).find("cdcdcdcd").await;
    let Err(TrackerError::Ambiguous { matches, .. }) = result else { panic!("{result:?}") };
    assert_eq!(matches.len(), 2);
    assert_eq!(world.trackers(&[A]).find("cdcdcdcd").await.unwrap().id.as_bytes()[31], 1);
}

#[tokio::test(start_paused = true)]
async fn client_futures_are_send() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[A]);
    let trackers = world.trackers(&[A]);
    let publication = library.outbox("a", 1);
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
async fn offer_before_publication_counts_afterwards() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (early, publisher) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
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
async fn unresponsive_tracker_does_not_delay_queries() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let first = world.tracker(A, &storage).await;
    let _second = world.tracker(B, &storage).await;
    let silent = "memory://silent:1";
    let _unresponsive = world.dialer().bind(&endpoint(silent)).await.unwrap();
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[silent, A, B]);
    presence.publish(&library.outbox("a", 1)).await.unwrap();
    let trackers = world.trackers(&[silent, A, B]);
    let start = Instant::now();
    assert_eq!(trackers.find("a").await.unwrap().id, file(1));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(count(&trackers, 1).await, 1);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // A tracker becomes unresponsive: the other one of its catalogue is queried.
    first.hang();
    let start = Instant::now();
    assert_eq!(count(&trackers, 1).await, 1);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(count(&trackers, 1).await, 1);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn interrupted_announcements_are_completed() {
    let world = World::new();
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let _tracker = world.tracker(A, &storage).await;
    let (publisher, other) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
    let presence = world.peer(&publisher, &[A]);
    presence.publish(&publisher.outbox("a", 1)).await.unwrap();
    other.put(1);
    // The session is the first commit, the announcements are the second.
    storage.add(Operation::Commit, When::Nth(2), Fault::Unavailable);
    let _second = world.peer(&other, &[A]);
    until(&world.trackers(&[A]), 1, 2).await;
    assert_eq!(storage.faults_met(), 1);
}

#[tokio::test(start_paused = true)]
async fn duplicate_identity_is_reported_by_both_peers() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let peers = [1, 2].map(|_| {
        let library = Arc::new(FakeLibrary::default());
        world.peer_with_key(KeyPair::from_secret(&[7; 32]), &library, &[A])
    });
    sleep(Duration::from_secs(60)).await;
    for peer in &peers {
        let warning = peer.status()[0].warning.clone().unwrap();
        assert!(warning.contains("another process uses the key"), "{warning}");
    }
    // One of them stops.
    peers[1].leave().await;
    sleep(Duration::from_secs(660)).await;
    let status = peers[0].status();
    assert!(status[0].connected && status[0].warning.is_none(), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn duplicate_identity_pauses_at_all_trackers() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let _trackers = [world.tracker(A, &storage).await, world.tracker(B, &storage).await];
    let _peers = [1, 2].map(|_| {
        let library = Arc::new(FakeLibrary::default());
        world.peer_with_key(KeyPair::from_secret(&[7; 32]), &library, &[A, B])
    });
    let mut starts = Vec::new();
    for _ in 0..1200 {
        sleep(Duration::from_millis(100)).await;
        for (_, raw) in storage.scan(LEASES, KeyRange::all(), 2).await.unwrap() {
            let lease: LeaseRecord = layout::decode(LEASES, &raw).unwrap();
            if starts.last() != Some(&lease.began) {
                starts.push(lease.began);
            }
        }
    }
    // The first session of the first peer is replaced at once.
    let durations: Vec<_> = starts.windows(2).skip(1).map(|pair| pair[1].saturating_since(pair[0])).collect();
    assert!(durations.len() >= 2, "{durations:?}");
    assert!(durations.iter().all(|each| *each >= Duration::from_secs(15)), "{durations:?}");
}

#[tokio::test(start_paused = true)]
async fn restarted_peer_is_not_reported_as_duplicate() {
    let world = World::new();
    let _tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let library = Arc::new(FakeLibrary::default());
    let start = || world.peer_with_key(KeyPair::from_secret(&[7; 32]), &library, &[A]);
    let killed = start();
    connected(&killed).await;
    drop(killed);
    let restarted = start();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(restarted.status()[0].warning, None);
}
