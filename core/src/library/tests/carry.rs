//! Libraries that move to other stores: of another cut, of another kind, cut off in the middle, damaged.

use super::*;
use crate::library::SPACES;
use crate::library::carry::{self, Carry, Pieces};
use crate::library::error::LibraryError;
use crate::library::stamp;
use crate::storage::copy::Copy;
use crate::storage::memory::Memory;
use crate::storage::value::{Key, Limits};

/// Empty files, small ones, and one of which some pieces are missing.
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
        let change = |space, key: &Key, value| carry::placed(&store, space, key, value);
        let copy = Copy { from: &source, to: &target, space: *space, change: &change, marking: None };
        copy.run(|_| {}).await.unwrap();
        assert_eq!(copy.first_difference().await.unwrap(), None);
    }
}

async fn carry_all(carry: &mut Carry) -> Pieces {
    let mut all = Pieces::default();
    while let Some(step) = carry.step().await.unwrap() {
        all.count += step.count;
        all.bytes += step.bytes;
    }
    all
}

#[tokio::test]
async fn a_library_has_the_same_content_in_another_store() {
    for (from, to) in [(false, false), (false, true), (true, false), (true, true)] {
        let (from, to) = (Rig::new(from), Rig::new(to));
        let filled = fill(&from).await;
        let index: Arc<dyn Storage> = Arc::new(from.index.open());
        let claimed = carry::claimed(&index, &from.store()).await.unwrap();
        assert!(carry::is_empty(&to.store()).await.unwrap());
        let mut carry = Carry::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        assert_eq!(carry_all(&mut carry).await, claimed);
        assert!(carry.sync().await.unwrap().is_some());
        copy_index(&from, &to).await;
        let copied: Arc<dyn Storage> = Arc::new(to.index.open());
        assert!(carry::is_held(&copied, &to.store(), claimed).await.unwrap());
        assert_eq!(carry_all(&mut Carry::proof(Arc::clone(&copied), to.store())).await, claimed);

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
        carry::empty(&store).await.unwrap();
        assert!(carry::is_empty(&store).await.unwrap());
        assert!(!carry::is_held(&copied, &store, claimed).await.unwrap());
    }
}

#[tokio::test]
async fn content_is_cut_to_what_the_target_holds() {
    let from = Rig::new(false);
    let filled = fill(&from).await;
    let index: Arc<dyn Storage> = Arc::new(from.index.open());
    let limits = Limits { max_value: 32 << 10, max_batch: 8 << 20, max_page_bytes: 1 << 20 };
    let small: Arc<dyn Storage> = Arc::new(Memory::new().with_limits(limits));
    let store = ContentStore::Database(Arc::clone(&small));
    let mut carry = Carry::new(Arc::clone(&index), from.store(), store.clone(), None).await.unwrap();
    let carried = carry_all(&mut carry).await;
    assert!(carry::is_held(&index, &store, carried).await.unwrap());
    let more = Pieces { bytes: carried.bytes + 1, ..carried };
    assert!(!carry::is_held(&index, &store, more).await.unwrap());
    let library = Library::open(index, store, LibrarySettings::default()).await.unwrap();
    for sample in &filled.samples {
        sample.check(&library.open_file(&sample.id()).await.unwrap().unwrap()).await;
    }
}

#[tokio::test]
async fn what_was_cut_off_goes_on_behind_the_last_sync() {
    let (from, to) = (Rig::new(false), Rig::new(false));
    fill(&from).await;
    let index: Arc<dyn Storage> = Arc::new(from.index.open());
    let whole = carry::claimed(&index, &from.store()).await.unwrap();
    for steps in 1.. {
        let mut carry = Carry::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        let mut done = Pieces::default();
        for _ in 0..steps {
            let Some(step) = carry.step().await.unwrap() else {
                assert!(steps > 3, "it takes several steps");
                return;
            };
            done = Pieces { count: done.count + step.count, bytes: done.bytes + step.bytes };
        }
        let at = carry.sync().await.unwrap().unwrap();
        let mut rest = Carry::new(Arc::clone(&index), from.store(), to.store(), Some(&at)).await.unwrap();
        let rest = carry_all(&mut rest).await;
        let sum = Pieces { count: done.count + rest.count, bytes: done.bytes + rest.bytes };
        assert_eq!(sum, whole);
        assert!(carry::is_held(&index, &to.store(), whole).await.unwrap());
        carry::empty(&to.store()).await.unwrap();
    }
}

#[tokio::test]
async fn a_stamp_belongs_to_one_store_and_is_no_content() {
    for in_files in [false, true] {
        let (store, other) = (Rig::new(in_files).store(), Rig::new(in_files).store());
        stamp::remove(&store).await.unwrap();
        let first = stamp::renew(&store).await.unwrap();
        assert_eq!(stamp::read(&store).await.unwrap(), Some(first.clone()));
        assert_eq!(stamp::read(&other).await.unwrap(), None);
        let second = stamp::renew(&store).await.unwrap();
        assert_ne!(first, second);
        assert!(carry::is_empty(&store).await.unwrap());
        carry::empty(&store).await.unwrap();
        assert_eq!(stamp::read(&store).await.unwrap(), Some(second));
        stamp::remove(&store).await.unwrap();
        assert_eq!(stamp::read(&store).await.unwrap(), None);
    }
}

#[tokio::test]
async fn what_is_claimed_and_not_there_or_wrong_is_told() {
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
                let store = crate::library::content::DatabaseContent(content);
                store.write(&sample.id(), &[other.piece(1)]).await.unwrap();
            }
            ContentStore::Files(dir) => {
                let path = crate::library::content_files::path_of(&dir, &sample.id());
                std::fs::write(path, &other.content).unwrap();
            }
        }
        let index: Arc<dyn Storage> = Arc::new(from.index.open());
        let mut carry = Carry::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        assert!(matches!(carry.step().await, Err(LibraryError::Damaged { .. })));
        carry::empty(&from.store()).await.unwrap();
        let mut carry = Carry::new(Arc::clone(&index), from.store(), to.store(), None).await.unwrap();
        assert!(matches!(carry.step().await, Err(LibraryError::MissingPiece { piece: 0, .. })));
        // The other kind of store has nothing of it.
        let wrong = Rig::new(!in_files).store();
        assert!(matches!(carry::claimed(&index, &wrong).await, Err(LibraryError::OtherStore { .. })));
    }
}

#[tokio::test]
async fn the_state_of_an_index_is_another_after_a_change() {
    let rig = Rig::new(false);
    fill(&rig).await;
    let before = carry::state_of(&rig.index.open()).await.unwrap();
    assert_eq!(carry::state_of(&rig.index.open()).await.unwrap(), before);
    let library = rig.open().await;
    let id = library.find("c").unwrap().id;
    library.remove(&id).await.unwrap();
    library.close().await.unwrap();
    assert_ne!(carry::state_of(&rig.index.open()).await.unwrap(), before);
}
