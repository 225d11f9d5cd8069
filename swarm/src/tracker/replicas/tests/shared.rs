//! Replicas that several pins need, and their deletion.

use super::*;
use crate::library::entry::NewFile;
use crate::library::output::Destination;
use enjambre_core::{Manifest, PieceLayout};

impl World {
    /// Starts a peer that publishes a directory and the file in it. Returns its session, the directory and the file.
    async fn directory(&self) -> (SessionId, FileId, FileId) {
        let path = self.dir.path().join("directory");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), vec![7; 1000]).unwrap();
        let (session, directory, _, library) = self.source_of(&path).await;
        let id = library.collection(&directory).await.unwrap().members()[0].id;
        let file = Publication { name: "file".parse().unwrap(), id, size: 1000, kind: FileKind::File };
        self.client.publish(session, &file).await.unwrap();
        (session, directory, id)
    }

    fn is_stored(&self, id: &FileId) -> bool {
        self.store.library().entry(id).is_some_and(|entry| entry.is_complete())
    }
}

#[tokio::test(start_paused = true)]
async fn pinned_file_is_kept_without_its_directory() {
    let world = World::new().await;
    let (session, directory, file) = world.directory().await;
    let other = world.peer("memory://peer:1").await;
    world.pin_complete(session, directory).await;
    world.pin_complete(other, file).await;
    world.client.unpin(session, directory).await.unwrap();
    assert!(world.is_stored(&file) && !world.is_stored(&directory));
    assert_eq!(world.reserved().await, (1000, 1));
    world.client.unpin(other, file).await.unwrap();
    assert_eq!(world.store.library().entries(), []);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn unpinned_file_is_kept_as_long_as_its_directory() {
    let world = World::new().await;
    let (session, directory, file) = world.directory().await;
    let other = world.peer("memory://peer:1").await;
    world.pin_complete(other, file).await;
    world.pin_complete(session, directory).await;
    world.client.unpin(other, file).await.unwrap();
    assert!(world.is_stored(&file) && world.is_stored(&directory));
    world.client.unpin(session, directory).await.unwrap();
    assert_eq!(world.store.library().entries(), []);
    assert_eq!(world.reserved().await, (0, 0));
    world.stop().await;
}

/// The other pins may have been removed while the refused one existed.
#[tokio::test(start_paused = true)]
async fn refused_pin_leaves_no_part_of_a_replica() {
    let world = World::new().await;
    let session = world.peer("memory://peer:1").await;
    let ids = world.publish(session, (MAX_FETCHES / FETCHES_PART) as u8).await;
    for id in &ids {
        world.client.pin(session, *id).await.unwrap();
    }
    let layout = PieceLayout::new(QUOTA).unwrap();
    let manifest = Manifest::from_hashes(layout, vec![[1; 32]; layout.count() as usize]).unwrap();
    let (id, name) = (manifest.id(), "part".parse().unwrap());
    let file = Publication { name, id, size: 1, kind: FileKind::File };
    let new = NewFile { name: Some(file.name.clone()), kind: file.kind, member_of: None };
    drop(world.store.library().create(manifest, new, Destination::Library).await.unwrap());
    world.client.publish(session, &file).await.unwrap();
    let refused = world.client.pin(session, id).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Busy));
    assert_eq!(world.store.library().entries(), []);
    assert_eq!(world.reserved().await, (0, ids.len() as u64));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_pin_is_added_while_a_replica_is_deleted() {
    let world = World::new().await;
    let (first, file, _) = world.source(1000).await;
    world.pin_complete(first, file).await;
    let second = world.peer("memory://peer:1").await;
    let deletion = world.store.pins.write().await;
    let mut pinned = Box::pin(world.client.pin(second, file));
    assert!(timeout(Duration::from_secs(1), &mut pinned).await.is_err());
    assert_eq!(world.pins().await.len(), 1);
    drop(deletion);
    assert_eq!(pinned.await.unwrap(), (1000, true));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn request_for_a_pending_pin_does_not_wait_for_other_pins() {
    let world = World::new().await;
    let (session, id) = world.pending_pin().await;
    let deletion = world.store.pins.write().await;
    assert_eq!(world.client.pin(session, id).await.unwrap(), (0, false));
    drop(deletion);
    world.stop().await;
}
