//! A content store that is empty although the index lists content in it.

use super::*;
use crate::library::drop_content_claims;
use crate::library::error::LibraryError;
use crate::library::publish::PublishOptions;

/// Removes the content of a closed library.
fn lose_content(rig: &mut Rig) {
    rig.content = Disk::new();
    if rig.in_files {
        std::fs::remove_dir_all(rig.path("content")).unwrap();
    }
}

#[tokio::test]
async fn missing_content_is_detected_before_the_library_is_opened() {
    for (in_files, is_complete) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut rig = Rig::new(in_files);
        let (empty, linked, stored) =
            (Sample::new(0, 1), Sample::new(PIECE, 2), Sample::new(3 * PIECE + 5, 3));
        let library = rig.open().await;
        for (sample, name, to) in
            [(&empty, "empty", Destination::Library), (&linked, "linked", rig.to("linked", false))]
        {
            let file = sample.create(&library, name, to).await;
            file.write_pieces(sample.all()).await.unwrap();
            file.finish(true).await.unwrap();
        }
        library.close().await.unwrap();

        // Nothing is stored, so it opens.
        let library = rig.open().await;
        let file = stored.create(&library, "stored", Destination::Library).await;
        let pieces = if is_complete { stored.all() } else { vec![stored.piece(1), stored.piece(3)] };
        file.write_pieces(pieces).await.unwrap();
        if is_complete {
            file.finish(true).await.unwrap();
        } else {
            library.checkpoint_all().await.unwrap();
        }
        drop(file);
        // Recovery would open the file, and create it.
        rig.kill(library).await;

        lose_content(&mut rig);
        for _ in 0..2 {
            let refused = Library::open(Arc::new(rig.index.open()), rig.store()).await.unwrap_err();
            assert!(matches!(refused, LibraryError::ContentMissing), "{refused}");
            assert!(!rig.path("content").exists());
        }
        drop_content_claims(&rig.index.open(), &rig.store()).await.unwrap();
        rig.index.power_cut();
        let library = rig.open().await;
        let have = |sample: &Sample| library.entry(&sample.id()).unwrap().have;
        assert_eq!((have(&stored), have(&linked)), (0, linked.layout().count()));
        let file = stored.create(&library, "stored", Destination::Library).await;
        file.write_pieces(stored.all()).await.unwrap();
        file.finish(true).await.unwrap();
        stored.check(&file).await;
        drop(file);
        library.close().await.unwrap();
    }
}

#[tokio::test]
async fn content_of_a_store_of_the_other_kind_is_kept() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "file", Destination::Library).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    drop(file);
    library.close().await.unwrap();
    let other = ContentStore::Files(rig.path("content"));
    Library::open(Arc::new(rig.index.open()), other.clone()).await.unwrap().close().await.unwrap();
    drop_content_claims(&rig.index.open(), &other).await.unwrap();
    let library = rig.open().await;
    let file = library.open_file(&sample.id()).await.unwrap().unwrap();
    assert!(sample.layout().pieces().all(|piece| file.has(piece)));
    sample.check(&file).await;
    drop(file);
    library.close().await.unwrap();
}

/// Only the list of its files is in the store.
#[tokio::test]
async fn linked_directory_without_its_list_is_complete_once_published_again() {
    let mut rig = Rig::new(false);
    let dir = rig.path("folder");
    std::fs::create_dir_all(dir.join("inner")).unwrap();
    std::fs::write(dir.join("inner/file"), "content").unwrap();
    let library = rig.open().await;
    let published = library.publish(&dir, PublishOptions::default(), |_| {}).await.unwrap();
    library.close().await.unwrap();
    lose_content(&mut rig);
    drop_content_claims(&rig.index.open(), &rig.store()).await.unwrap();
    let library = rig.open().await;
    assert!(!library.entry(&published.id).unwrap().is_complete());
    assert_eq!(library.publish(&dir, PublishOptions::default(), |_| {}).await.unwrap(), published);
    assert!(library.entry(&published.id).unwrap().is_complete());
    assert_eq!(library.collection(&published.id).await.unwrap().members().len(), 1);
    library.close().await.unwrap();
}
