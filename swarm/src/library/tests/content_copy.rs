//! Copies of content to other stores: resumed, split differently, or with a damaged source.

use super::*;
use crate::library::SPACES;
use crate::library::content_copy::{self, ContentCopy, PieceTotals};
use crate::library::error::LibraryError;
use crate::record_copy::Copy;
use enjambre_core::{Key, Limits, Memory};

/// Empty files, small ones, and one with missing pieces.
struct Filled {
    samples: Vec<Sample>,
    partial: Sample,
}

async fn fill(rig: &Rig) -> Filled {
    let library = rig.open().await;
    let samples: Vec<Sample> = [0, 1, 70_000, PIECE, 5 * PIECE + 3]
        .into_iter()
        .zip(1..)
        .map(|(len, seed)| Sample::new(len, seed))
        .collect();
    for (sample, name) in samples.iter().zip(["a", "b", "c", "d", "e"]) {
        let file = sample.create(&library, name, Destination::Library).await;
        assert!(file.write_pieces(sample.all()).await.unwrap().is_empty());
        file.finish(true).await.unwrap();
    }
    let partial = Sample::new(9 * PIECE, 9);
    let file = partial.create(&library, "partial", Destination::Library).await;
    file.write_pieces(vec![partial.piece(8), partial.piece(2), partial.piece(5)]).await.unwrap();
    library.close().await.unwrap();
    Filled { samples, partial }
}

async fn copy_index(from: &Rig, to: &Rig) {
    let (source, target) = (from.index.open(), to.index.open());
    let store = to.store();
    for space in SPACES {
        let change = |space, key: &Key, value| content_copy::relocate_record(&store, space, key, value);
        let copy = Copy { from: &source, to: &target, space: *space, change: &change, marking: None };
        copy.run(|_| {}).await.unwrap();
        assert_eq!(copy.first_difference().await.unwrap(), None);
    }
}

async fn copy_all(copy: &mut ContentCopy) -> PieceTotals {
    let mut all = PieceTotals::default();
    while let Some(step) = copy.step().await.unwrap() {
        all.count += step.count;
        all.bytes += step.bytes;
    }
    all
}

#[tokio::test]
async fn copied_library_has_same_content() {
    for (from, to) in [(false, false), (false, true), (true, false), (true, true)] {
        let (from, to) = (Rig::new(from), Rig::new(to));
        let filled = fill(&from).await;
        let index: Arc<dyn Storage> = Arc::new(from.index.open());
        let claimed = content_copy::claimed_pieces(&index, &from.store()).await.unwrap();
        assert!(to.store().is_empty().await.unwrap());
        let mut copy = ContentCopy::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        assert_eq!(copy_all(&mut copy).await, claimed);
        assert!(copy.sync().await.unwrap().is_some());
        copy_index(&from, &to).await;
        let copied: Arc<dyn Storage> = Arc::new(to.index.open());
        assert!(content_copy::has_copied_sizes(&copied, &to.store(), claimed).await.unwrap());
        assert_eq!(copy_all(&mut ContentCopy::verification(Arc::clone(&copied), to.store())).await, claimed);

        let library = to.open().await;
        for sample in &filled.samples {
            let file = library.open_file(&sample.id()).await.unwrap().unwrap();
            assert!(file.is_finished());
            sample.check(&file).await;
            let report = library.verify(&sample.id()).await.unwrap();
            assert!(report.bad.is_empty() && report.missing == 0);
        }
        let file = library.open_file(&filled.partial.id()).await.unwrap().unwrap();
        assert_eq!(file.have_count(), 3);
        filled.partial.check(&file).await;
        library.close().await.unwrap();
        let (copied, store): (Arc<dyn Storage>, _) = (Arc::new(to.index.open()), to.store());
        store.clear().await.unwrap();
        assert!(store.is_empty().await.unwrap());
        assert!(!content_copy::has_copied_sizes(&copied, &store, claimed).await.unwrap());
    }
}

#[tokio::test]
async fn copied_content_is_split_for_target() {
    let from = Rig::new(false);
    let filled = fill(&from).await;
    let index: Arc<dyn Storage> = Arc::new(from.index.open());
    let limits =
        Limits { max_value: 32 << 10, max_batch: 8 << 20, max_writes: usize::MAX, max_page_bytes: 1 << 20 };
    let small: Arc<dyn Storage> = Arc::new(Memory::new().with_limits(limits));
    let store = ContentStore::Database(Arc::clone(&small));
    let mut copy = ContentCopy::new(Arc::clone(&index), from.store(), store.clone(), None).await.unwrap();
    let carried = copy_all(&mut copy).await;
    assert!(content_copy::has_copied_sizes(&index, &store, carried).await.unwrap());
    let more = PieceTotals { bytes: carried.bytes + 1, ..carried };
    assert!(!content_copy::has_copied_sizes(&index, &store, more).await.unwrap());
    let library = Library::open(index, store).await.unwrap();
    for sample in &filled.samples {
        sample.check(&library.open_file(&sample.id()).await.unwrap().unwrap()).await;
    }
}

#[tokio::test]
async fn interrupted_copy_resumes_after_last_sync() {
    let (from, to) = (Rig::new(false), Rig::new(false));
    fill(&from).await;
    let index: Arc<dyn Storage> = Arc::new(from.index.open());
    let whole = content_copy::claimed_pieces(&index, &from.store()).await.unwrap();
    for steps in 1.. {
        let mut copy = ContentCopy::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        let mut done = PieceTotals::default();
        for _ in 0..steps {
            let Some(step) = copy.step().await.unwrap() else {
                assert!(steps > 3, "the copy takes several steps");
                return;
            };
            done = PieceTotals { count: done.count + step.count, bytes: done.bytes + step.bytes };
        }
        let at = copy.sync().await.unwrap().unwrap();
        let mut rest =
            ContentCopy::new(Arc::clone(&index), from.store(), to.store(), Some(&at)).await.unwrap();
        let rest = copy_all(&mut rest).await;
        let sum = PieceTotals { count: done.count + rest.count, bytes: done.bytes + rest.bytes };
        assert_eq!(sum, whole);
        assert!(content_copy::has_copied_sizes(&index, &to.store(), whole).await.unwrap());
        to.store().clear().await.unwrap();
    }
}

#[tokio::test]
async fn copy_marker_is_unique_and_not_content() {
    for in_files in [false, true] {
        let (store, other) = (Rig::new(in_files).store(), Rig::new(in_files).store());
        content_copy::remove_marker(&store).await.unwrap();
        let first = content_copy::renew_marker(&store).await.unwrap();
        assert_eq!(content_copy::read_marker(&store).await.unwrap(), Some(first.clone()));
        assert_eq!(content_copy::read_marker(&other).await.unwrap(), None);
        let second = content_copy::renew_marker(&store).await.unwrap();
        assert_ne!(first, second);
        assert!(store.is_empty().await.unwrap());
        store.clear().await.unwrap();
        assert_eq!(content_copy::read_marker(&store).await.unwrap(), Some(second));
        content_copy::remove_marker(&store).await.unwrap();
        assert_eq!(content_copy::read_marker(&store).await.unwrap(), None);
    }
}

#[tokio::test]
async fn missing_or_damaged_claimed_piece_is_reported() {
    for in_files in [false, true] {
        let (from, to) = (Rig::new(in_files), Rig::new(false));
        let sample = Sample::new(3 * PIECE, 1);
        let library = from.open().await;
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        library.close().await.unwrap();
        let other = Sample::new(3 * PIECE, 2);
        match from.store() {
            ContentStore::Database(content) => {
                let pieces = sample.stored(vec![other.piece(1)]);
                ContentStore::Database(content).write(pieces).await.unwrap();
            }
            ContentStore::Files(dir) => {
                let path = crate::library::content_files::path_of(&dir, &sample.id());
                std::fs::write(path, &other.content).unwrap();
            }
        }
        let index: Arc<dyn Storage> = Arc::new(from.index.open());
        let mut copy = ContentCopy::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        assert!(matches!(copy.step().await, Err(LibraryError::Damaged { .. })));
        from.store().clear().await.unwrap();
        let mut copy = ContentCopy::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        assert!(matches!(copy.step().await, Err(LibraryError::MissingPiece { piece: 0, .. })));
        // The other kind of store does not contain the content.
        let wrong = Rig::new(!in_files).store();
        assert!(matches!(
            content_copy::claimed_pieces(&index, &wrong).await,
            Err(LibraryError::OtherStore { .. })
        ));
    }
}

#[tokio::test]
async fn claims_hash_changes_with_index() {
    let rig = Rig::new(false);
    fill(&rig).await;
    let before = content_copy::claims_hash(&rig.index.open()).await.unwrap();
    assert_eq!(content_copy::claims_hash(&rig.index.open()).await.unwrap(), before);
    let library = rig.open().await;
    let id = library.find("c").unwrap().id;
    library.remove(&id).await.unwrap();
    library.close().await.unwrap();
    assert_ne!(content_copy::claims_hash(&rig.index.open()).await.unwrap(), before);
}
