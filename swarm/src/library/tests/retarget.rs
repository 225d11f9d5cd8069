//! Another destination for an incomplete file, an older copy at the destination, exports, and sparse files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::*;
use crate::library::content::DatabaseContent;
use crate::library::entry::Location;
use crate::library::error::LibraryError;
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

#[tokio::test]
async fn last_destination_keeps_stored_pieces() {
    for in_files in [false, true] {
        let rig = Rig::new(in_files);
        let sample = Sample::new(4 * PIECE + 5, 1);
        let mut library = rig.open().await;
        fs::create_dir(rig.path("dir")).unwrap();
        let names = ["a.bin", "dir/b.bin", "", "c.bin", "", "a.bin"];
        for (number, name) in names.into_iter().enumerate() {
            let to = if name.is_empty() { Destination::Library } else { rig.to(name, false) };
            let file = sample.create(&library, "x", to).await;
            assert_eq!(file.have_count() as usize, number.min(4), "pieces were lost on the way to {name:?}");
            sample.check(&file).await;
            let linked = matches!(file.location(), Location::Linked { path } if path == rig.path(name));
            assert_eq!(linked, !name.is_empty());
            for other in names.into_iter().filter(|other| !other.is_empty()) {
                let part = rig.path(&format!("{other}.enjambre-part"));
                assert_eq!(part.exists(), other == name, "{}", part.display());
            }
            if number < 4 {
                file.write_pieces(vec![sample.piece(number as u32)]).await.unwrap();
            }
            drop(file);
            if number % 2 == 1 {
                rig.kill(library).await;
                library = rig.open().await;
            }
        }
        let file = sample.create(&library, "x", rig.to("a.bin", false)).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
        assert!(!rig.path("dir/b.bin").exists() && !rig.path("c.bin").exists());
    }
}

#[tokio::test]
async fn other_destination_waits_for_write_in_progress() {
    const LONG: Duration = Duration::from_secs(20);
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let content = Arc::new(FaultyStorage::new(Arc::new(rig.content.open()), 1));
    let store = ContentStore::Database(content.clone());
    let library = Library::open(Arc::new(rig.index.open()), store).await.unwrap();
    let file = sample.create(&library, "x", Destination::Library).await;
    content.add(Operation::Commit, When::Nth(1), Fault::Delay(Duration::from_millis(500)));
    // The creation waits for the lock before the write does.
    let lock = library.inner.lock(&sample.id()).await;
    let (creating, to, of) = (Arc::clone(&library), rig.to("a.bin", false), sample.clone());
    let create = tokio::spawn(async move { of.create(&creating, "x", to).await });
    sleep(Duration::from_millis(100)).await;
    let (writing, piece) = (Arc::clone(&file), sample.piece(0));
    let write = tokio::spawn(async move { writing.write_pieces(vec![piece]).await });
    sleep(Duration::from_millis(100)).await;
    drop(lock);
    // Checkpoints need it.
    drop(timeout(LONG, library.inner.lock(&sample.id())).await.unwrap());
    assert!(timeout(LONG, write).await.unwrap().unwrap().unwrap().is_empty());
    let moved = timeout(LONG, create).await.unwrap().unwrap();
    assert!(matches!(moved.location(), Location::Linked { path } if path == rig.path("a.bin")));
    assert_eq!(moved.have_count(), 1);
    sample.check(&moved).await;
}

/// A library with the content in a storage with faults, and a file with two pieces there.
async fn with_faulty_content(
    rig: &Rig,
    sample: &Sample,
) -> (Arc<Library>, Arc<LibraryFile>, Arc<FaultyStorage>) {
    let content = Arc::new(FaultyStorage::new(Arc::new(rig.content.open()), 1));
    let store = ContentStore::Database(content.clone());
    let library = Library::open(Arc::new(rig.index.open()), store).await.unwrap();
    let file = sample.create(&library, "x", Destination::Library).await;
    file.write_pieces(vec![sample.piece(0), sample.piece(2)]).await.unwrap();
    (library, file, content)
}

async fn fault_is_met(storage: &FaultyStorage) {
    until(|| storage.faults_met() > 0).await;
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.expect("the condition holds in time");
}

#[tokio::test]
async fn copy_to_other_destination_does_not_delay_checkpoint() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let (library, _, content) = with_faulty_content(&rig, &sample).await;
    content.add(Operation::Get, When::Nth(1), Fault::Delay(Duration::from_secs(3600)));
    let (creating, to) = (Arc::clone(&library), rig.to("a.bin", false));
    tokio::spawn(async move { sample.create(&creating, "x", to).await });
    fault_is_met(&content).await;
    timeout(Duration::from_secs(20), library.checkpoint_all()).await.unwrap().unwrap();
}

#[tokio::test]
async fn removal_during_copy_wins() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let (library, file, content) = with_faulty_content(&rig, &sample).await;
    content.add(Operation::Get, When::Nth(1), Fault::Delay(Duration::from_secs(1)));
    let (creating, to, of) = (Arc::clone(&library), rig.to("a.bin", false), sample.clone());
    let create = tokio::spawn(async move { of.create(&creating, "x", to).await });
    fault_is_met(&content).await;
    library.remove(&sample.id()).await.unwrap();
    assert!(file.read_piece(sample.piece(0).0).await.is_err());
    // It begins anew.
    let file = create.await.unwrap();
    assert_eq!(file.have_count(), 0);
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
    assert!(rig.content.entries().iter().all(|(_, entries)| *entries == 0), "copied content is left");
}

/// The sweep begins while the move waits for a write.
#[tokio::test]
async fn sweep_in_progress_keeps_content_that_moves_to_library() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let (library, _, content) = with_faulty_content(&rig, &sample).await;
    let file = sample.create(&library, "x", rig.to("a.bin", false)).await;
    // What an interrupted import left.
    library.inner.content.write(sample.stored(sample.all())).await.unwrap();
    let write = file.gate.read().await;
    let (creating, of) = (Arc::clone(&library), sample.clone());
    let create = tokio::spawn(async move { of.create(&creating, "x", Destination::Library).await });
    until(|| file.gate.try_read().is_err()).await;
    content.add(Operation::Commit, When::Nth(1), Fault::Delay(Duration::from_secs(1)));
    let sweeping = Arc::clone(&library);
    let sweep = tokio::spawn(async move { sweeping.inner.sweep().await });
    fault_is_met(&content).await;
    drop(write);
    let file = create.await.unwrap();
    sweep.await.unwrap().unwrap();
    check_moved(&sample, &file, content).await;
}

#[tokio::test]
async fn sweep_during_a_move_to_the_library_keeps_its_content() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let (library, _, content) = with_faulty_content(&rig, &sample).await;
    sample.create(&library, "x", rig.to("a.bin", false)).await;
    // The copied pieces are synced before the record names them.
    content.add(Operation::Sync, When::Nth(1), Fault::Delay(Duration::from_secs(1)));
    let (creating, of) = (Arc::clone(&library), sample.clone());
    let create = tokio::spawn(async move { of.create(&creating, "x", Destination::Library).await });
    fault_is_met(&content).await;
    library.inner.sweep().await.unwrap();
    check_moved(&sample, &create.await.unwrap(), content).await;
}

/// Checks that two pieces are in the library.
async fn check_moved(sample: &Sample, file: &LibraryFile, content: Arc<FaultyStorage>) {
    assert_eq!(file.have_count(), 2);
    let content = DatabaseContent(content);
    for number in [0, 2] {
        let (piece, expected) = sample.piece(number);
        assert_eq!(content.read(&sample.id(), sample.layout(), piece).await.unwrap(), Some(expected));
    }
}

#[tokio::test]
async fn move_with_unknown_outcome_keeps_pieces() {
    for (applied, is_repaired) in [(true, false), (false, false), (true, true)] {
        let rig = Rig::new(false);
        let sample = Sample::new(3 * PIECE, 1);
        let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
        let library = rig.open_on(index.clone()).await;
        let file = sample.create(&library, "x", rig.to("a.bin", false)).await;
        file.write_pieces(vec![sample.piece(0), sample.piece(2)]).await.unwrap();
        library.checkpoint_all().await.unwrap();
        index.add(Operation::Commit, When::Nth(1), Fault::Indeterminate { applied });
        if !is_repaired {
            index.add(Operation::Commit, When::Nth(2), Fault::Fail);
        }
        let moved = library.create(sample.manifest.clone(), named("x"), rig.to("b.bin", false)).await;
        assert!(moved.is_err(), "{applied} {is_repaired}");
        drop(file);
        rig.kill(library).await;
        assert_eq!(rig.path("b.bin.enjambre-part").exists(), !is_repaired);
        let library = rig.open().await;
        let file = library.open_file(&sample.id()).await.unwrap().expect("it is not withdrawn");
        let place = if applied && !is_repaired { "b.bin" } else { "a.bin" };
        assert!(matches!(file.location(), Location::Linked { path } if path == rig.path(place)));
        assert_eq!(file.have_count(), 2);
        sample.check(&file).await;
    }
}

#[tokio::test]
async fn export_to_file_that_appears_meanwhile_leaves_no_part_file() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let (library, file, content) = with_faulty_content(&rig, &sample).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    content.add(Operation::Get, When::Nth(1), Fault::Delay(Duration::from_secs(1)));
    let (exporting, path) = (Arc::clone(&library), rig.path("a.bin"));
    let export = tokio::spawn(async move { exporting.export(&sample.id(), &path, false).await });
    fault_is_met(&content).await;
    fs::write(rig.path("a.bin"), b"came meanwhile").unwrap();
    assert!(matches!(export.await.unwrap(), Err(LibraryError::Exists { .. })));
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), b"came meanwhile");
    assert!(!rig.path("a.bin.enjambre-part").exists());
}

#[tokio::test]
async fn piece_that_moves_during_its_read_is_kept() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let (library, file, content) = with_faulty_content(&rig, &sample).await;
    content.add(Operation::Get, When::Nth(1), Fault::Delay(Duration::from_secs(1)));
    let (reading, piece) = (Arc::clone(&file), sample.piece(0));
    let read = tokio::spawn(async move { reading.read_piece(piece.0).await });
    fault_is_met(&content).await;
    sample.create(&library, "x", rig.to("a.bin", false)).await;
    assert_eq!(read.await.unwrap().unwrap(), piece.1);
    assert_eq!(file.have_count(), 2);
}

#[tokio::test]
async fn pieces_are_moved_within_file_system_and_copied_across() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "x", rig.to("a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0), sample.piece(2)]).await.unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let first = inode(rig.path("a.bin.enjambre-part"));
    sample.create(&library, "x", rig.to("b.bin", false)).await;
    assert_eq!(inode(rig.path("b.bin.enjambre-part")), first);
    // The directory of the tests is usually on a disk, and this one in memory.
    let Ok(other) = TempDir::new_in("/dev/shm") else { return };
    let path = other.path().join("c.bin");
    let to = Destination::Path { path: path.clone(), executable: true, force: false };
    let moved = sample.create(&library, "x", to).await;
    assert!(!rig.path("b.bin.enjambre-part").exists());
    assert_eq!(moved.have_count(), 2);
    moved.write_pieces(sample.all()).await.unwrap();
    moved.finish(true).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), sample.content);
    assert!(fs::metadata(&path).unwrap().mode() & 0o100 != 0);
}

#[tokio::test]
async fn force_after_conflict_uses_stored_pieces() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "x", rig.to("a.bin", false)).await;
    file.write_pieces(sample.all()).await.unwrap();
    fs::write(rig.path("a.bin"), b"came meanwhile").unwrap();
    assert!(matches!(file.finish(true).await, Err(LibraryError::Exists { .. })));
    drop(file);
    let file = sample.create(&library, "x", rig.to("a.bin", true)).await;
    assert!(file.is_complete());
    file.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
}

#[tokio::test]
async fn destination_with_whole_content_replaces_partial_one() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "x", rig.to("a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0)]).await.unwrap();
    fs::write(rig.path("b.bin"), &sample.content).unwrap();
    let file = sample.create(&library, "x", rig.to("b.bin", false)).await;
    assert!(file.is_finished());
    sample.check(&file).await;
    assert!(!rig.path("a.bin.enjambre-part").exists());
}

#[tokio::test]
async fn deleted_part_file_is_created_again_with_its_pieces() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "x", rig.to("a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0)]).await.unwrap();
    fs::remove_file(rig.path("a.bin.enjambre-part")).unwrap();
    // It is still open.
    let again = sample.create(&library, "x", rig.to("a.bin", false)).await;
    assert_eq!(again.have_count(), 1);
    again.write_pieces(sample.all()).await.unwrap();
    again.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
}

#[tokio::test]
async fn pieces_of_older_or_truncated_copy_are_used() {
    let rig = Rig::new(false);
    let sample = Sample::new(4 * PIECE, 1);
    let mut older = sample.content[..3 * PIECE + 7].to_vec();
    older[PIECE] ^= 1;
    fs::write(rig.path("a.bin"), &older).unwrap();
    let library = rig.open().await;
    let file = sample.create(&library, "x", rig.to("a.bin", true)).await;
    let have: Vec<u32> =
        file.layout().pieces().filter(|piece| file.has(*piece)).map(PieceIndex::get).collect();
    assert_eq!(have, [0, 2]);
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), older, "until the file is complete");
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
}

#[tokio::test]
async fn sparse_file_stays_sparse() {
    let mut content = vec![0; 16 * PIECE + 5];
    content[3 * PIECE] = 1;
    let sample = Sample::of(content.into());
    for in_files in [false, true] {
        let rig = Rig::new(in_files);
        let library = rig.open().await;
        let to = if in_files { Destination::Library } else { rig.to("a.bin", false) };
        let file = sample.create(&library, "x", to).await;
        // The end is written first, so all blocks are allocated before the zeros are written.
        let mut pieces = sample.all();
        pieces.reverse();
        for piece in pieces {
            file.write_pieces(vec![piece]).await.unwrap();
        }
        file.finish(true).await.unwrap();
        sample.check(&file).await;
        library.export(&sample.id(), &rig.path("b.bin"), false).await.unwrap();
        let id = sample.id().to_string();
        let stored = if in_files { rig.path("content").join(&id[..2]).join(id) } else { rig.path("a.bin") };
        for path in [stored, rig.path("b.bin")] {
            assert_eq!(fs::read(&path).unwrap(), sample.content);
            let allocated = fs::metadata(&path).unwrap().blocks() * 512;
            assert!(allocated <= 2 * PIECE as u64, "{} has {allocated} bytes", path.display());
        }
    }
}
