//! Tests of writes that a database lost after their acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::presence::{A, count};
use super::several_trackers::sessions;
use super::{FakeLibrary, Tracker, World, file, publication};
use crate::catalogue::layout::SPACES;
use crate::tracker_client::presence::Presence;
use enjambre_core::{Batch, Durability, KeyRange, Memory, Storage};

/// A copy of a database.
async fn copy_of(database: &Memory) -> Arc<Memory> {
    let copy = Memory::new();
    for space in SPACES {
        for (key, value) in database.scan(*space, KeyRange::all(), 1000).await.unwrap() {
            let mut batch = Batch::new();
            batch.put(*space, key, value);
            copy.commit(batch, Durability::Buffered).await.unwrap();
        }
    }
    Arc::new(copy)
}

/// Starts a tracker, and a peer that has published a file there.
async fn publisher(world: &World, storage: &Arc<Memory>) -> (Tracker, Arc<FakeLibrary>, Presence) {
    let tracker = world.tracker(A, storage).await;
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[A]);
    presence.publish(&library.outbox("old", 1)).await.unwrap();
    (tracker, library, presence)
}

#[tokio::test(start_paused = true)]
async fn restored_database_is_completed_within_a_lease() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let (tracker, library, presence) = publisher(&world, &storage).await;
    presence.publish(&library.outbox("withdrawn", 2)).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    // The backup contains the session, and nearly all its renewals.
    let backup = copy_of(&storage).await;
    presence.publish(&library.outbox("new", 3)).await.unwrap();
    let other_name = publication("another name", 1);
    library.queue(&other_name);
    presence.publish(&other_name).await.unwrap();
    library.remove(2);
    presence.withdraw(file(2));
    sleep(Duration::from_secs(6)).await;
    tracker.kill().await;
    let _tracker = world.tracker(A, &backup).await;
    let trackers = world.trackers(&[A]);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(trackers.find("new").await.unwrap().id, file(3));
    assert_eq!(trackers.find("another name").await.unwrap().id, file(1));
    // The sweep removes the claims of earlier sessions.
    sleep(Duration::from_secs(600)).await;
    assert_eq!(count(&trackers, 2).await, 0);
}

/// Otherwise the last of several publishers of a name to reconnect would decide.
#[tokio::test(start_paused = true)]
async fn repeated_publication_replaces_no_newer_version() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let tracker = world.tracker(A, &storage).await;
    let (one, two) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
    let peers = [world.peer(&one, &[A]), world.peer(&two, &[A])];
    sleep(Duration::from_secs(60)).await;
    // Both publications are newer than the stored time.
    peers[0].publish(&one.outbox("a", 1)).await.unwrap();
    let newest = peers[1].publish(&two.outbox("a", 2)).await.unwrap();
    tracker.kill().await;
    let tracker = world.tracker(A, &storage).await;
    let before = sessions(&*storage).await;
    sleep(Duration::from_secs(60)).await;
    let after = sessions(&*storage).await;
    assert!(after.len() == 2 && after.iter().all(|session| !before.contains(session)));
    let found = world.trackers(&[A]).find("a").await.unwrap();
    assert_eq!((found.id, found.version), (file(2), newest.version));
    tracker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn restarted_tracker_keeps_sessions_without_later_writes() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let (tracker, _library, _presence) = publisher(&world, &storage).await;
    sleep(Duration::from_secs(60)).await;
    let before = sessions(&*storage).await;
    tracker.kill().await;
    let _tracker = world.tracker(A, &storage).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(sessions(&*storage).await, before);
    assert_eq!(count(&world.trackers(&[A]), 1).await, 1, "the session was renewed");
}

#[tokio::test(start_paused = true)]
async fn withdrawal_that_a_restored_database_lacks_is_repeated() {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let (tracker, library, presence) = publisher(&world, &storage).await;
    sleep(Duration::from_secs(60)).await;
    let backup = copy_of(&storage).await;
    library.remove(1);
    presence.withdraw(file(1));
    sleep(Duration::from_secs(6)).await;
    tracker.kill().await;
    let _tracker = world.tracker(A, &backup).await;
    // The sweep removes the claims of earlier sessions.
    sleep(Duration::from_secs(600)).await;
    assert_eq!(count(&world.trackers(&[A]), 1).await, 0);
}
