//! The space that pins reserve.

use super::*;
use crate::download::DownloadError;

/// A stranger pins content as large as its share that nobody has.
#[tokio::test(start_paused = true)]
async fn pin_without_content_reserves_nothing_and_expires() {
    let world = World::new().await;
    let stranger = world.peer("memory://stranger:1").await;
    let id = FileId::from_bytes([9; 32]);
    let missing = Publication { name: "x".parse().unwrap(), id, size: QUOTA / 2, kind: FileKind::File };
    world.client.publish(stranger, &missing).await.unwrap();
    assert_eq!(world.client.pin(stranger, id).await.unwrap(), (0, false));
    assert_eq!(world.reserved().await, (0, 1));
    // The size and the kind in the catalogue are wrong.
    let size = QUOTA / 2;
    let (session, file, _) = world.source(size as usize).await;
    world.pin_complete(session, file).await;
    assert_eq!(world.reserved().await, (size, 2));
    tokio::time::sleep(Duration::from_secs(65 * 60)).await;
    assert_eq!(world.reserved().await, (size, 1), "the pin without content expired");
    let pins = world.pins().await;
    assert!(pins.len() == 1 && pins[0].0.file == file && pins[0].1.complete, "{pins:?}");
    world.stop().await;
}

/// Only the last piece is fetched, which proves the size.
#[tokio::test(start_paused = true)]
async fn file_larger_than_the_share_of_a_peer_is_not_fetched() {
    let world = World::new().await;
    let (session, file, seeder) = world.source(QUOTA as usize).await;
    assert_eq!(world.pin_refused(session, file).await.code(), Some(ErrorCode::Full));
    assert_eq!(world.reserved().await, (0, 0));
    assert!(seeder.sent_bytes() <= QUOTA / 4, "{}", seeder.sent_bytes());
    assert!(world.store.library().entry(&file).is_none());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn file_larger_than_the_free_space_is_not_fetched() {
    let world = World::new().await;
    let (session, file, seeder) = world.source(QUOTA as usize / 2).await;
    let ReplicaParts { catalogue, clock, .. } = &world.store.parts;
    for (other, size) in [(8, QUOTA / 2), (9, 1)] {
        let id = PinId { file: FileId::from_bytes([other; 32]), by: PeerId::from_bytes([other; 32]) };
        catalogue.pin(&id, clock.now()).await.unwrap();
        catalogue.resize_pin(&id, size, QUOTA).await.unwrap();
    }
    assert_eq!(world.pin_refused(session, file).await.code(), Some(ErrorCode::Full));
    assert!(seeder.sent_bytes() <= QUOTA / 4, "{}", seeder.sent_bytes());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pin_beyond_the_share_is_refused_at_once() {
    let world = World::new().await;
    let [publisher, other] = [world.peer("memory://peer:1").await, world.peer("memory://peer:2").await];
    let id = FileId::from_bytes([9; 32]);
    let file = Publication { name: "x".parse().unwrap(), id, size: QUOTA, kind: FileKind::File };
    world.client.publish(publisher, &file).await.unwrap();
    let refused = world.client.pin(publisher, id).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Full));
    assert_eq!(world.reserved().await, (0, 0));
    // The size may be a false claim of the publisher.
    assert_eq!(world.client.pin(other, id).await.unwrap(), (0, false));
    let small = Publication { size: 1, ..file.clone() };
    world.client.publish(publisher, &small).await.unwrap();
    assert_eq!(world.client.pin(publisher, id).await.unwrap(), (0, false));
    world.client.publish(publisher, &file).await.unwrap();
    // An existing pin is continued, even if nothing fetches the file at the moment.
    for (pin, _) in world.pins().await {
        world.store.stop_fetch(&pin).await;
    }
    assert_eq!(world.client.pin(publisher, id).await.unwrap(), (0, false));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refusal_at_once_names_what_the_peer_has_reserved() {
    let world = World::new().await;
    let (session, id) = world.pending_pin().await;
    let (pin, _) = world.pins().await[0];
    world.store.parts.catalogue.resize_pin(&pin, 1000, QUOTA).await.unwrap();
    let other = world.own_pin(id).await;
    world.store.parts.catalogue.resize_pin(&other, 1500, QUOTA).await.unwrap();
    let id = FileId::from_bytes([9; 32]);
    let file = Publication { name: "x".parse().unwrap(), id, size: QUOTA, kind: FileKind::File };
    world.client.publish(session, &file).await.unwrap();
    let refused = world.client.pin(session, id).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("1000 of {} bytes are reserved", QUOTA / 2)), "{refused}");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn replica_of_another_peer_counts_in_the_share() {
    let world = World::new().await;
    let (first, file, _) = world.source(QUOTA as usize / 2).await;
    world.pin_complete(first, file).await;
    let second = world.peer("memory://peer:1").await;
    let id = world.publish(second, 1).await[0];
    world.client.pin(second, id).await.unwrap();
    let pin = world.pins().await.into_iter().map(|(pin, _)| pin).find(|pin| pin.file == id).unwrap();
    world.store.parts.catalogue.resize_pin(&pin, 1, QUOTA).await.unwrap();
    let refused = world.client.pin(second, file).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Full));
    assert_eq!(world.reserved().await, (QUOTA / 2 + 1, 2));
    assert!(world.client.pin(first, file).await.unwrap().1, "the pin of the first peer remains");
    world.stop().await;
}

/// Another pin limits the download of a member that the download of the collection joined.
#[tokio::test(start_paused = true)]
async fn limited_download_of_a_member_does_not_shrink_the_reservation() {
    let world = World::new().await;
    let session = world.peer("memory://peer:1").await;
    let id = world.publish(session, 1).await[0];
    let pin = world.own_pin(id).await;
    let ReplicaParts { catalogue, clock, .. } = &world.store.parts;
    let file = catalogue.file(&id, clock.now()).await.unwrap().unwrap();
    for (list, reserved) in [(10, 1000), (2000, 2500)] {
        catalogue.resize_pin(&pin, 1000, QUOTA).await.unwrap();
        let (_progress, updates) = watch::channel(Progress::default());
        let failed = async { Err(Arc::new(DownloadError::TooLarge { size: 500, max: 100 })) };
        assert!(!world.store.reserve_during(&file, &pin, list, updates, failed).await.unwrap());
        assert_eq!(world.reserved().await, (reserved, 1));
    }
    world.stop().await;
}
