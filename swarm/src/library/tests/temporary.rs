//! Publishing temporary files that were hashed by their writer.

use std::fs;

use super::*;
use crate::library::entry::Location;
use crate::library::publish::{PublishError, Published};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

async fn publish(rig: &Rig, library: &Library, sample: &Sample) -> Result<Published, PublishError> {
    let path = rig.path("upload");
    fs::write(&path, &sample.content).unwrap();
    library.publish_temporary(&path, sample.manifest.clone(), "a".parse().unwrap(), None).await
}

async fn check(library: &Library, sample: &Sample) {
    assert!(library.find("a").unwrap().is_complete());
    sample.check(&library.open_file(&sample.id()).await.unwrap().unwrap()).await;
    let report = library.verify(&sample.id()).await.unwrap();
    assert_eq!((report.good, report.missing), (sample.layout().count(), 0));
}

#[tokio::test]
async fn temporary_file_becomes_the_content_of_a_directory_store() {
    for (in_files, len) in [(false, 0), (true, 0), (false, 3 * PIECE + 1), (true, 3 * PIECE + 1)] {
        let (rig, sample) = (Rig::new(in_files), Sample::new(len, 1));
        let library = rig.open().await;
        let published = publish(&rig, &library, &sample).await.unwrap();
        assert_eq!((published.id, published.size), (sample.id(), len as u64));
        assert_eq!(rig.path("upload").exists(), !in_files, "moved, or copied into the database");
        let location = if in_files { Location::Files } else { Location::Database };
        assert_eq!(library.find("a").unwrap().location, location);
        check(&library, &sample).await;
        rig.kill(library).await;
        rig.index.power_cut();
        rig.content.power_cut();
        check(&*rig.open().await, &sample).await;
    }
}

#[tokio::test]
async fn temporary_file_completes_a_running_download() {
    for in_files in [false, true] {
        let (rig, sample) = (Rig::new(in_files), Sample::new(3 * PIECE, 2));
        let library = rig.open().await;
        let file = sample.create(&library, "wanted", Destination::Library).await;
        file.write_pieces(vec![sample.piece(1)]).await.unwrap();
        publish(&rig, &library, &sample).await.unwrap();
        // The download does not know it yet.
        let _ = file.write_pieces(vec![sample.piece(2)]).await;
        drop(file);
        check(&library, &sample).await;
        rig.kill(library).await;
        check(&*rig.open().await, &sample).await;
    }
}

#[tokio::test]
async fn failed_publication_of_temporary_file_leaves_no_content() {
    let (rig, sample) = (Rig::new(true), Sample::new(2 * PIECE, 3));
    let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
    let library = rig.open_on(Arc::clone(&index) as _).await;
    index.add(Operation::Commit, When::Nth(1), Fault::Full);
    assert!(publish(&rig, &library, &sample).await.is_err());
    drop(index);
    rig.kill(library).await;
    let library = rig.open().await;
    library.inner.sweep().await.unwrap();
    assert!(library.find("a").is_err());
    let stored = crate::library::content_files::list(&rig.path("content")).unwrap();
    assert_eq!(stored, [], "the content is removed at the next start");
    publish(&rig, &library, &sample).await.unwrap();
    check(&library, &sample).await;
}
