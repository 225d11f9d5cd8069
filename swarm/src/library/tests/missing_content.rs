//! A content store that is empty although the index lists content in it.

use super::*;
use crate::library::{drop_content_claims, is_content_missing};

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
        assert!(!is_content_missing(&rig.index.open(), &rig.store()).await.unwrap(), "nothing is stored");

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
        assert!(!is_content_missing(&rig.index.open(), &rig.store()).await.unwrap());

        lose_content(&mut rig);
        assert!(is_content_missing(&rig.index.open(), &rig.store()).await.unwrap());
        assert!(!rig.path("content").exists());
        drop_content_claims(&rig.index.open(), &rig.store()).await.unwrap();
        rig.index.power_cut();
        assert!(!is_content_missing(&rig.index.open(), &rig.store()).await.unwrap());
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
    assert!(!is_content_missing(&rig.index.open(), &other).await.unwrap());
    drop_content_claims(&rig.index.open(), &other).await.unwrap();
    let library = rig.open().await;
    let file = library.open_file(&sample.id()).await.unwrap().unwrap();
    assert!(sample.layout().pieces().all(|piece| file.has(piece)));
    sample.check(&file).await;
    drop(file);
    library.close().await.unwrap();
}
