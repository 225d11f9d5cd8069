//! Publishing the same files again.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::library::publish::NewPublished;
use crate::library::publish::{PublishOptions, PublishProgress, Published};
use enjambre_core::UnixMillis;
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

fn pattern(len: usize, step: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7 % 251) as u8 ^ step).collect()
}

async fn content_of(library: &Library, id: &FileId) -> Vec<u8> {
    let file = library.open_file(id).await.unwrap().unwrap();
    let mut content = Vec::new();
    for piece in file.layout().pieces() {
        content.extend_from_slice(&file.read_piece(piece).await.unwrap());
    }
    content
}

/// Publishes a path and returns how many bytes were known before.
async fn known_bytes(rig: &Rig, library: &Arc<Library>, name: &str) -> (Published, u64) {
    let known = Arc::new(AtomicU64::new(u64::MAX));
    let first = Arc::clone(&known);
    let record = move |progress: PublishProgress| {
        // The first report contains the bytes that were known before the first read.
        first.fetch_min(progress.done, Ordering::Relaxed);
    };
    let published = library.publish(&rig.path(name), PublishOptions::default(), record).await.unwrap();
    (published, known.load(Ordering::Relaxed))
}

/// Makes the file appear to be written long before it was added.
fn age(path: &Path, library: &Library) {
    let mut state = library.inner.state.lock();
    for slot in state.slots.values_mut().filter(|slot| slot.record.place.path().as_deref() == Some(path)) {
        slot.record.added_ms = slot.record.added_ms + Duration::from_secs(3600);
    }
}

#[tokio::test]
async fn unchanged_linked_files_are_not_read_again() {
    let rig = Rig::new(false);
    fs::create_dir_all(rig.path("dir/sub")).unwrap();
    let files = [("a", 1000), ("sub/b", 300 << 10), ("c", 50)];
    for (name, len) in files {
        fs::write(rig.path("dir").join(name), pattern(len, 3)).unwrap();
    }
    fs::write(rig.path("single"), pattern(600 << 10, 4)).unwrap();
    let total = 1000 + (300 << 10) + 50;
    let mut library = rig.open().await;
    let (first, known) = known_bytes(&rig, &library, "dir").await;
    assert!(known > 0 && known < total, "some files were read");
    known_bytes(&rig, &library, "single").await;
    for name in ["dir/a", "dir/sub/b", "dir/c", "single"] {
        age(&rig.path(name), &library);
    }
    assert_eq!(known_bytes(&rig, &library, "dir").await, (first.clone(), total));
    let (_, known) = known_bytes(&rig, &library, "single").await;
    assert_eq!(known, 600 << 10);

    // One file changes without a change of its length.
    fs::write(rig.path("dir/a"), pattern(1000, 5)).unwrap();
    let (second, known) = known_bytes(&rig, &library, "dir").await;
    assert_eq!(known, total - 1000);
    assert_ne!(second.id, first.id);
    let list = library.collection(&second.id).await.unwrap();
    for member in list.members() {
        let content = fs::read(rig.path("dir").join(member.path.as_str())).unwrap();
        assert_eq!(member.id.as_bytes(), blake3::hash(&content).as_bytes());
        assert_eq!(content_of(&library, &member.id).await, content);
    }

    // Known files are known after a restart as well, and belong to both collections.
    library.close().await.unwrap();
    drop(library);
    library = rig.open().await;
    library.remove(&first.id).await.unwrap();
    for member in list.members() {
        assert!(library.entry(&member.id).unwrap().is_complete(), "{}", member.path);
    }
}

#[tokio::test]
async fn publication_survives_concurrent_removal() {
    for (stored, in_files) in [(false, false), (true, false), (false, true), (true, true)] {
        let rig = Rig::new(in_files);
        let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
        let library = rig.open_on(index.clone()).await;
        let sample = Sample::new(2 * PIECE, 1);
        let (inner, id) = (&library.inner, sample.id());
        let file = sample.create(&library, "a", Destination::Library).await;
        let pieces = if stored { sample.all() } else { vec![sample.piece(0)] };
        file.write_pieces(pieces).await.unwrap();
        if stored {
            file.finish(true).await.unwrap();
        }
        drop(file);

        let missing = inner.begin_import(&id).await.unwrap();
        assert_eq!(missing, !stored);
        if missing {
            inner.content.write(sample.stored(sample.all())).await.unwrap();
            inner.content.sync().await.unwrap();
        }
        // The tombstone is written, but its deletion fails.
        index.add(Operation::Commit, When::Nth(2), Fault::Full);
        assert!(library.remove(&id).await.is_err());
        index.clear();
        let new = NewPublished {
            manifest: sample.manifest.clone(),
            kind: FileKind::File,
            name: Some("b".parse().unwrap()),
            member_of: None,
            linked: None,
            since: UnixMillis(1),
        };
        library.files.register(vec![new], Vec::new()).await.unwrap();
        inner.state.lock().end_import(&id);
        assert_eq!(content_of(&library, &id).await, sample.content);
        rig.kill(library).await;
        assert_eq!(content_of(&*rig.open().await, &id).await, sample.content, "stored: {stored}");
    }
}

#[tokio::test]
async fn recently_written_file_is_read_again() {
    let rig = Rig::new(false);
    fs::create_dir_all(rig.path("dir")).unwrap();
    fs::write(rig.path("dir/a"), pattern(1000, 3)).unwrap();
    let library = rig.open().await;
    let (first, _) = known_bytes(&rig, &library, "dir").await;
    {
        // As if the clock of the file system had not ticked since.
        let mut state = library.inner.state.lock();
        for slot in state.slots.values_mut() {
            slot.record.added_ms = UnixMillis(0);
            slot.verified = false;
        }
    }
    let (again, _) = known_bytes(&rig, &library, "dir").await;
    assert_eq!(again, first);
    let file = library.entry(&library.collection(&first.id).await.unwrap().members()[0].id).unwrap();
    assert!(file.added_ms > UnixMillis(0), "the file was read and its time recorded");
}
