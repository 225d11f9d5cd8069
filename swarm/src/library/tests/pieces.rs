//! Files and pieces: storing, opening, removing, sweeping and format checks.

use std::time::Duration;

use super::*;
use crate::library::content::DatabaseContent;
use crate::library::entry::LibraryEvent;
use crate::library::error::LibraryError;
use enjambre_core::{Durability, KeyRange, Limits, Memory, Space, StorageError};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

#[tokio::test]
async fn file_is_written_read_and_found_in_both_stores() {
    for in_files in [false, true] {
        let rig = Rig::new(in_files);
        let sample = Sample::new(3 * PIECE + 5, 1);
        let library = rig.open().await;
        let mut events = library.events();
        let file = sample.create(&library, "a.bin", Destination::Library).await;
        file.write_pieces(vec![sample.piece(3), sample.piece(0)]).await.unwrap();
        assert!(matches!(file.finish(false).await, Err(LibraryError::Incomplete { have: 2, pieces: 4, .. })));
        assert!(!library.offers()[0].complete);
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        sample.check(&file).await;
        assert_eq!(events.recv().await.unwrap(), LibraryEvent::Added(sample.id()));
        assert_eq!(events.recv().await.unwrap(), LibraryEvent::Completed(sample.id()));

        drop(file);
        library.close().await.unwrap();
        rig.index.power_cut();
        rig.content.power_cut();
        let library = rig.open().await;
        let prefix = &sample.id().to_string()[..8];
        for query in ["a.bin", prefix, &sample.id().to_string().to_uppercase()] {
            assert!(library.find(query).unwrap().is_complete(), "{query}");
        }
        assert!(matches!(library.find("b.bin"), Err(LibraryError::NotFound { .. })));
        let file = library.open_file(&sample.id()).await.unwrap().unwrap();
        assert!(file.is_finished());
        sample.check(&file).await;
        let other = library.open_file(&sample.id()).await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&file, &other), "all callers share the open file");
        assert!(library.offers()[0].complete);
    }
}

#[tokio::test]
async fn empty_and_single_piece_files_survive_power_cut() {
    for in_files in [false, true] {
        for len in [0, 1, PIECE] {
            let rig = Rig::new(in_files);
            let sample = Sample::new(len, 1);
            let library = rig.open().await;
            let file = sample.create(&library, "a", Destination::Library).await;
            file.write_pieces(sample.all()).await.unwrap();
            file.finish(true).await.unwrap();
            drop(file);
            rig.kill(library).await;
            rig.index.power_cut();
            rig.content.power_cut();
            let library = rig.open().await;
            assert!(library.find("a").unwrap().is_complete(), "{len}");
            sample.check(&library.open_file(&sample.id()).await.unwrap().unwrap()).await;
        }
    }
}

#[tokio::test]
async fn split_pieces_are_readable_after_limit_change() {
    let limits =
        |max_value| Limits { max_value, max_batch: 8 << 20, max_writes: usize::MAX, max_page_bytes: 1 << 20 };
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE + 7, 1);
    let open = async |max_value| {
        let content = ContentStore::Database(Arc::new(rig.content.open().with_limits(limits(max_value))));
        let index = Arc::new(rig.index.open());
        Library::open(index, content).await.unwrap()
    };
    let library = open(48 << 10).await;
    let file = sample.create(&library, "a", Destination::Library).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    sample.check(&file).await;
    for max_value in [32 << 10, 1 << 20] {
        let library = open(max_value).await;
        sample.check(&library.open_file(&sample.id()).await.unwrap().unwrap()).await;
    }
    let library = open(1 << 20).await;
    library.remove(&sample.id()).await.unwrap();
    let left = rig.content.open().scan(Space::new("content"), KeyRange::all(), 10).await.unwrap();
    assert!(left.is_empty());
}

#[tokio::test]
async fn wrong_size_is_replaced_until_last_piece_proves_size() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE + 5, 1);
    let other = PieceLayout::new(2 * PIECE as u64 + 9).unwrap();
    let other = Manifest::verify(sample.id(), other, sample.manifest.hashes().to_vec()).unwrap();
    let library = rig.open().await;
    let wrong = library.create(other.clone(), named("a"), Destination::Library).await.unwrap();
    wrong.write_pieces(vec![sample.piece(0)]).await.unwrap();
    let file = sample.create(&library, "a", Destination::Library).await;
    assert_eq!(file.layout().size(), sample.layout().size());
    assert!(wrong.write_pieces(vec![sample.piece(1)]).await.is_err(), "the replaced file is unusable");
    file.write_pieces(vec![sample.piece(2)]).await.unwrap();
    let refused = library.create(other, named("a"), Destination::Library).await;
    assert!(matches!(refused, Err(LibraryError::WrongSize { .. })));
}

#[tokio::test]
async fn write_succeeds_after_full_disk() {
    for full_index in [false, true] {
        let rig = Rig::new(false);
        let sample = Sample::new(3 * PIECE, 1);
        let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
        let content = Arc::new(FaultyStorage::new(Arc::new(rig.content.open()), 1));
        let store = ContentStore::Database(content.clone());
        let library = Library::open(index.clone(), store).await.unwrap();
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(vec![sample.piece(0)]).await.unwrap();
        let full = if full_index { &index } else { &content };
        full.add(Operation::Commit, When::Always, Fault::Full);
        let refused = file.write_pieces(vec![sample.piece(1)]).await;
        assert!(matches!(refused, Err(LibraryError::Full { .. })), "{refused:?}");
        assert_eq!(file.have_count(), 1);
        full.clear();
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        drop(file);
        rig.kill(library).await;
        let library = rig.open().await;
        let file = library.open_file(&sample.id()).await.unwrap().unwrap();
        assert!(file.is_complete());
        sample.check(&file).await;
    }
}

#[tokio::test]
async fn removed_file_leaves_nothing_and_can_be_added_again() {
    for in_files in [false, true] {
        let rig = Rig::new(in_files);
        let sample = Sample::new(3 * PIECE, 1);
        let library = rig.open().await;
        for _ in 0..2 {
            let file = sample.create(&library, "a", Destination::Library).await;
            file.write_pieces(sample.all()).await.unwrap();
            file.finish(false).await.unwrap();
            library.remove(&sample.id()).await.unwrap();
            assert!(file.read_piece(sample.piece(0).0).await.is_err());
            assert!(library.entries().is_empty() && library.find("a").is_err());
        }
        assert!(matches!(library.remove(&sample.id()).await, Err(LibraryError::NotFound { .. })));
        library.close().await.unwrap();
        for name in ["files", "hashes", "have", "dirty", "tombs", "members"] {
            let space = match name {
                "files" => crate::library::layout::FILES,
                "hashes" => crate::library::layout::HASHES,
                "have" => crate::library::layout::HAVE,
                "dirty" => crate::library::layout::DIRTY,
                "tombs" => crate::library::layout::TOMBS,
                _ => crate::library::layout::MEMBERS,
            };
            let left = rig.index.open().scan(space, KeyRange::all(), 9).await.unwrap();
            assert!(left.is_empty(), "{name}");
        }
        match in_files {
            true => {
                assert!(!crate::library::content_files::path_of(&rig.path("content"), &sample.id()).exists());
            }
            false => {
                let left = rig.content.open().scan(Space::new("content"), KeyRange::all(), 9).await.unwrap();
                assert!(left.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn interrupted_removal_is_finished_at_start() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let content = Arc::new(FaultyStorage::new(Arc::new(rig.content.open()), 1));
    let store = ContentStore::Database(content.clone());
    let library = Library::open(Arc::new(rig.index.open()), store).await.unwrap();
    let file = sample.create(&library, "a", Destination::Library).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    content.add(Operation::Commit, When::Always, Fault::Full);
    assert!(library.remove(&sample.id()).await.is_err());
    assert!(library.entry(&sample.id()).is_none(), "the file has a tombstone");
    let tombs = library.inner.index.scan(crate::library::layout::TOMBS, KeyRange::all(), 9).await.unwrap();
    assert_eq!(tombs.len(), 1);
    drop(file);
    rig.kill(library).await;
    let library = rig.open().await;
    assert!(library.entries().is_empty());
    let left = library.inner.index.scan(crate::library::layout::TOMBS, KeyRange::all(), 9).await.unwrap();
    assert!(left.is_empty());
    library.close().await.unwrap();
    let left = rig.content.open().scan(Space::new("content"), KeyRange::all(), 9).await.unwrap();
    assert!(left.is_empty());
}

#[tokio::test]
async fn orphaned_content_is_swept() {
    let rig = Rig::new(false);
    let (kept, orphan) = (Sample::new(PIECE, 1), Sample::new(2 * PIECE, 2));
    let library = rig.open().await;
    let file = kept.create(&library, "a", Destination::Library).await;
    file.write_pieces(kept.all()).await.unwrap();
    file.finish(true).await.unwrap();
    library.inner.content.write(orphan.stored(orphan.all())).await.unwrap();
    drop(file);
    rig.kill(library).await;
    let library = rig.open().await;
    library.inner.sweep().await.unwrap();
    library.close().await.unwrap();
    let content = rig.content.open();
    let left = content.scan(Space::new("content"), KeyRange::all(), 99).await.unwrap();
    assert!(!left.is_empty() && left.iter().all(|(key, _)| key.as_bytes().starts_with(kept.id().as_bytes())));
}

#[tokio::test]
async fn closing_the_library_ends_the_sweep_without_error() {
    for in_files in [false, true] {
        let (rig, orphan) = (Rig::new(in_files), Sample::new(PIECE, 1));
        let library = rig.open().await;
        // The sweep of the start has ended.
        library.close().await.unwrap();
        library.inner.content.write(orphan.stored(orphan.all())).await.unwrap();
        library.inner.sweep().await.unwrap();
        assert!(!library.inner.content.is_empty().await.unwrap(), "nothing is removed any more");
    }
}

#[tokio::test]
async fn damaged_piece_is_dropped_and_written_again() {
    for in_files in [false, true] {
        let rig = Rig::new(in_files);
        let sample = Sample::new(3 * PIECE, 1);
        let library = rig.open().await;
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        let mut wrong = sample.piece(1);
        wrong.1 = vec![7; PIECE].into();
        library.inner.content.write(sample.stored(vec![wrong])).await.unwrap();
        let report = library.verify(&sample.id()).await.unwrap();
        assert_eq!((report.good, report.bad, report.missing), (2, vec![1], 0));
        assert_eq!(library.entry(&sample.id()).unwrap().have, 2);
        drop(file);
        rig.kill(library).await;
        let library = rig.open().await;
        assert_eq!(
            library.entry(&sample.id()).unwrap().have,
            2,
            "invalid pieces are not claimed after a restart"
        );
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        assert!(library.verify(&sample.id()).await.unwrap().bad.is_empty());
        assert!(library.entry(&sample.id()).unwrap().is_complete());
    }
}

#[tokio::test(start_paused = true)]
async fn writes_become_durable_in_background() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", Destination::Library).await;
    file.write_pieces(vec![sample.piece(1)]).await.unwrap();
    // The paused clock advances while all tasks are idle.
    tokio::time::timeout(Duration::from_secs(60), async {
        while !library.inner.dirty.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
    drop(file);
    rig.kill(library).await;
    rig.index.power_cut();
    rig.content.power_cut();
    let library = rig.open().await;
    assert_eq!(library.entry(&sample.id()).unwrap().have, 1);
}

#[tokio::test]
async fn find_returns_newest_file_of_name() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let (old, new) = (Sample::new(5, 1), Sample::new(5, 2));
    for sample in [&old, &new] {
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(false).await.unwrap();
    }
    assert_eq!(library.find("a").unwrap().id, new.id());
    library.remove(&new.id()).await.unwrap();
    assert_eq!(library.find("a").unwrap().id, old.id());
    library.close().await.unwrap();
    assert_eq!(rig.open().await.find("a").unwrap().id, old.id());
}

#[tokio::test]
async fn newer_and_foreign_formats_are_refused() {
    let rig = Rig::new(false);
    let write = async |format: Vec<u8>| {
        let index = rig.index.open();
        let mut batch = enjambre_core::storage::value::Batch::new();
        batch.put(crate::library::layout::META, crate::library::layout::format_key(), format);
        index.commit(batch, Durability::Durable).await.unwrap();
        index
    };
    let index = write(2u64.to_be_bytes().to_vec()).await;
    let found = crate::library::stored_format(&index).await;
    assert!(matches!(found, Err(StorageError::NewerFormat { found: 2, .. })), "{found:?}");
    let opened = Library::open(Arc::new(rig.index.open()), rig.store()).await;
    assert!(matches!(opened, Err(LibraryError::Storage(StorageError::NewerFormat { found: 2, .. }))));
    for foreign in [0u64.to_be_bytes().to_vec(), b"foreign".to_vec()] {
        let index = write(foreign).await;
        let found = crate::library::stored_format(&index).await;
        assert!(matches!(found, Err(StorageError::Corrupt { .. })), "{found:?}");
    }
}

#[tokio::test]
async fn removal_limits_deletes_per_commit() {
    // 100 pieces with one part each.
    let layout = PieceLayout::new(100 * 256 * 1024).unwrap();
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let content = DatabaseContent(storage.clone());
    let id = FileId::from_bytes([1; 32]);
    let part = Bytes::from_static(b"1");
    assert_eq!(layout.count(), 100);
    content.put(layout.pieces().map(|piece| (&id, piece.get(), &part))).await.unwrap();
    for (nth, left) in [(1, 100), (2, 36)] {
        storage.clear();
        storage.add(Operation::Commit, When::Nth(nth), Fault::Full);
        assert!(content.remove(&id, Some(layout)).await.is_err());
        let all = storage.scan(Space::new("content"), KeyRange::all(), 1000).await.unwrap();
        assert_eq!(all.len(), left);
    }
    storage.clear();
    content.remove(&id, Some(layout)).await.unwrap();
    assert_eq!(content.next_id(None).await.unwrap(), None);
}
