//! Tests of publications that trackers do not accept at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{FakeLibrary, World, file};
use crate::tracker_client::presence::Presence;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::{Memory, PeerId};

const A: &str = "memory://a:1";

/// Returns whether the number of refused names becomes this one.
async fn has_refused(presence: &Presence, count: usize) -> bool {
    for _ in 0..3600 {
        if presence.refused().len() == count {
            return true;
        }
        sleep(Duration::from_secs(1)).await;
    }
    false
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
    let tracker = world.tracker(A, &Arc::new(Memory::new())).await;
    let (catalogue, name) = (&tracker.service.catalogue, "a".parse().unwrap());
    catalogue.reserve(&name, PeerId::from_bytes([7; 32]), world.clock.now()).await.unwrap();
    let presence = world.peer(&library, &[A]);
    let refused = presence.publish(&library.outbox("a", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Forbidden));
    assert!(has_refused(&presence, 1).await);
    assert!(presence.refused().contains(&(file(1), name.clone())));
    catalogue.release(&name).await.unwrap();
    assert!(has_refused(&presence, 0).await);
    assert_eq!(world.trackers(&[A]).find("a").await.unwrap().id, file(1));
}
