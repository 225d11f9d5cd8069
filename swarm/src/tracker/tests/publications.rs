//! Tests of publications that trackers do not accept at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{FakeLibrary, Tracker, World, file};
use crate::tracker_client::presence::Presence;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::{FileId, Memory, Name, PeerId};

const A: &str = "memory://a:1";
const B: &str = "memory://b:1";

/// Waits until these names are the refused ones.
async fn refuse(presence: &Presence, names: &[(&str, u32)]) {
    let names: HashSet<(FileId, Name)> =
        names.iter().map(|(name, n)| (file(*n), name.parse().unwrap())).collect();
    let refused = async {
        while presence.refused() != names {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(3600), refused).await.unwrap_or_else(|_| panic!("{:?}", presence.refused()));
}

/// Starts a tracker with a new catalogue that reserves these names for another peer.
async fn tracker_with_reservations(world: &World, at: &str, names: &[&str]) -> Tracker {
    let tracker = world.tracker(at, &Arc::new(Memory::new())).await;
    for name in names {
        let (name, by) = (name.parse().unwrap(), PeerId::from_bytes([7; 32]));
        tracker.service.catalogue.reserve(&name, by, world.clock.now()).await.unwrap();
    }
    tracker
}

#[tokio::test(start_paused = true)]
async fn publication_after_an_outage_does_not_wait_for_the_backoff() {
    let (world, database) = (World::new(), Arc::new(Memory::new()));
    let library = Arc::new(FakeLibrary::default());
    let presence = world.peer(&library, &[A]);
    for n in 0..5 {
        sleep(Duration::from_secs(120)).await;
        let tracker = world.tracker(A, &database).await;
        let (start, publication) = (Instant::now(), library.outbox("a", n));
        while presence.publish(&publication).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        tracker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn refused_name_is_published_once_it_is_released() {
    let (world, library) = (World::new(), Arc::new(FakeLibrary::default()));
    let tracker = tracker_with_reservations(&world, A, &["a"]).await;
    let presence = world.peer(&library, &[A]);
    let refused = presence.publish(&library.outbox("a", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Forbidden));
    refuse(&presence, &[("a", 1)]).await;
    tracker.service.catalogue.release(&"a".parse().unwrap()).await.unwrap();
    refuse(&presence, &[]).await;
    assert_eq!(world.trackers(&[A]).find("a").await.unwrap().id, file(1));
}

#[tokio::test(start_paused = true)]
async fn name_is_refused_once_all_current_catalogues_refuse_it() {
    let (world, library) = (World::new(), Arc::new(FakeLibrary::default()));
    let accepting = tracker_with_reservations(&world, A, &["b"]).await;
    let _refusing = tracker_with_reservations(&world, B, &["a", "b"]).await;
    let presence = world.peer(&library, &[A, B]);
    assert!(presence.wait_connected(Duration::from_secs(10)).await, "{:?}", presence.status());
    presence.publish(&library.outbox("a", 1)).await.expect("one catalogue accepts it");
    presence.publish(&library.outbox("b", 2)).await.unwrap_err();
    refuse(&presence, &[("b", 2)]).await;
    // Another catalogue replaces the one that accepted the name.
    accepting.stop().await;
    let _tracker = tracker_with_reservations(&world, A, &["a"]).await;
    refuse(&presence, &[("a", 1)]).await;
}
