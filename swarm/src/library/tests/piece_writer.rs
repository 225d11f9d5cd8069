//! Writing pieces: verification, records of intended pieces, and recovery after a kill.

use super::*;
use crate::library::layout::{DIRTY, HAVE};
use enjambre_core::KeyRange;
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

#[tokio::test]
async fn invalid_pieces_are_returned_and_not_stored() {
    for in_files in [false, true] {
        let rig = Rig::new(in_files);
        let sample = Sample::new(4 * PIECE, 1);
        let library = rig.open().await;
        let file = sample.create(&library, "a", Destination::Library).await;
        let (one, two) = (sample.piece(1), sample.piece(2));
        let short = Bytes::copy_from_slice(&two.1[1..]);
        let pieces = vec![sample.piece(0), (one.0, two.1.clone()), (two.0, short), sample.piece(3)];
        assert_eq!(file.write_pieces(pieces).await.unwrap(), [one.0, two.0]);
        assert!(file.has(sample.piece(0).0) && file.has(sample.piece(3).0));
        assert_eq!(file.have_count(), 2);
        // Stored pieces are skipped, whatever their content.
        assert!(file.write_pieces(vec![(sample.piece(0).0, one.1.clone())]).await.unwrap().is_empty());
        assert!(file.write_pieces(vec![one, two]).await.unwrap().is_empty());
        file.finish(true).await.unwrap();
        sample.check(&file).await;
    }
}

#[tokio::test]
async fn invalid_last_piece_does_not_preallocate() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    let wrong = (sample.piece(2).0, sample.piece(0).1);
    assert_eq!(file.write_pieces(vec![wrong]).await.unwrap().len(), 1);
    assert_eq!(std::fs::metadata(rig.path("a.bin.enjambre-part")).unwrap().len(), 0);
}

#[tokio::test]
async fn expected_pieces_are_recorded_ahead_with_few_commits() {
    let rig = Rig::new(false);
    let sample = Sample::new(64 * PIECE, 1);
    let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
    let library = rig.open_on(index.clone()).await;
    let file = sample.create(&library, "a", Destination::Library).await;
    for (piece, _) in sample.all() {
        file.expect(piece);
    }
    file.write_pieces(vec![sample.piece(0)]).await.unwrap();
    let recorded = rig.index.open().scan(DIRTY, KeyRange::all(), 10).await.unwrap();
    let bits: u32 = recorded.iter().flat_map(|(_, page)| page.iter()).map(|byte| byte.count_ones()).sum();
    assert_eq!(bits, 64);
    // All pieces are recorded as intended, so failing commits do not matter.
    index.add(Operation::Commit, When::Always, Fault::Full);
    for number in 1..63 {
        file.write_pieces(vec![sample.piece(number)]).await.unwrap();
    }
    index.clear();
    drop(file);
    rig.kill(library).await;
    let library = rig.open().await;
    assert_eq!(library.entry(&sample.id()).unwrap().have, 63, "exactly the written pieces are found");
}

#[tokio::test]
async fn synced_pieces_are_not_hashed_after_kill() {
    let rig = Rig::new(false);
    let sample = Sample::new(8 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", Destination::Library).await;
    for number in 0..6 {
        file.write_pieces(vec![sample.piece(number)]).await.unwrap();
    }
    file.checkpoint().await.unwrap();
    drop(file);
    rig.kill(library).await;
    let content = Arc::new(FaultyStorage::new(Arc::new(rig.content.open()), 1));
    content.add(Operation::Get, When::Always, Fault::Fail);
    let store = ContentStore::Database(content);
    let library = Library::open(Arc::new(rig.index.open()), store).await.unwrap();
    assert_eq!(library.entry(&sample.id()).unwrap().have, 6);
}

#[tokio::test]
async fn complete_unfinished_file_is_finished_at_start() {
    for len in [0, 7, PIECE, 2 * PIECE] {
        for in_files in [false, true] {
            let rig = Rig::new(in_files);
            let sample = Sample::new(len, 1);
            let library = rig.open().await;
            let file = sample.create(&library, "a", Destination::Library).await;
            file.write_pieces(sample.all()).await.unwrap();
            file.checkpoint().await.unwrap();
            drop(file);
            rig.kill(library).await;
            let library = rig.open().await;
            library.checkpoint_all().await.unwrap();
            assert!(library.inner.stores_completely(&sample.id()), "{len} bytes");
            for space in [HAVE, DIRTY] {
                assert!(rig.index.keys(space).is_empty(), "{space:?} of {len} bytes");
            }
        }
    }
}

#[tokio::test]
async fn empty_complete_file_survives_kill() {
    let rig = Rig::new(false);
    let sample = Sample::new(0, 1);
    let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
    let library = rig.open_on(index.clone()).await;
    let file = sample.create(&library, "a", Destination::Library).await;
    // Finishing needs no further commit.
    index.add(Operation::Commit, When::Always, Fault::Full);
    file.finish(false).await.unwrap();
    rig.kill(library).await;
    assert!(rig.open().await.entry(&sample.id()).is_some_and(|entry| entry.is_complete()));
}

#[tokio::test]
async fn removal_with_unknown_outcome_counts_as_applied() {
    for applied in [true, false] {
        let rig = Rig::new(false);
        let sample = Sample::new(2 * PIECE, 1);
        let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
        let library = rig.open_on(index.clone()).await;
        let fill = async || {
            let file = sample.create(&library, "a", Destination::Library).await;
            assert_eq!(file.have_count(), 0);
            file.write_pieces(sample.all()).await.unwrap();
            file.finish(true).await.unwrap();
        };
        fill().await;
        index.add(Operation::Commit, When::Nth(1), Fault::Indeterminate { applied });
        assert!(library.remove(&sample.id()).await.is_err());
        assert!(library.entry(&sample.id()).is_none());
        fill().await;
        rig.index.power_cut();
        rig.content.power_cut();
        let library = rig.open().await;
        assert!(library.entry(&sample.id()).is_some_and(|entry| entry.is_complete()), "applied: {applied}");
        let file = library.open_file(&sample.id()).await.unwrap().unwrap();
        sample.check(&file).await;
        library.remove(&sample.id()).await.unwrap();
        assert!(rig.content.entries().iter().all(|(_, entries)| *entries == 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_count_every_piece() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    for seed in 0..=u8::MAX {
        let sample = Sample::new(2 * PIECE, seed);
        let file = sample.create(&library, &seed.to_string(), Destination::Library).await;
        let write = |number| file.write_pieces(vec![sample.piece(number)]);
        let (first, second) = tokio::join!(write(0), write(1));
        assert!(first.unwrap().is_empty() && second.unwrap().is_empty());
        assert!(library.entry(&sample.id()).unwrap().is_complete(), "file {seed}");
    }
}
