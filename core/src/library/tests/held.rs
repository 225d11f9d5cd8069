//! Files that are held open, and what is known of them: hashed once, and never trusted when they look otherwise.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::*;
use crate::library::error::LibraryError;
use crate::library::linked::Fingerprint;
use crate::library::publications::NewPublished;
use crate::publish::{PublishOptions, publish};

async fn downloaded(rig: &Rig, library: &Library, sample: &Sample) {
    let file = sample.create(library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
}

async fn reopened(library: &Library, sample: &Sample) -> Arc<LibraryFile> {
    library.open_recent(&sample.id()).await.unwrap().unwrap()
}

fn is_proven(file: &Arc<LibraryFile>) -> bool {
    file.bits.lock().verified.is_full()
}

#[tokio::test]
async fn what_was_downloaded_is_not_hashed_again_until_the_next_start() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    downloaded(&rig, &library, &sample).await;
    // A file that nobody wrote to just now.
    let old = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let published = publish(&library, &old, PublishOptions::default(), |_| {}).await.unwrap();
    let old = async |library: &Library| library.open_recent(&published.id).await.unwrap().unwrap();
    assert!(is_proven(&reopened(&library, &sample).await));
    assert!(is_proven(&old(&library).await));
    rig.kill(library).await;
    let library = rig.open().await;
    assert!(!is_proven(&reopened(&library, &sample).await));
    let file = old(&library).await;
    assert!(!is_proven(&file));
    file.read_piece(file.layout().last().unwrap()).await.unwrap();
    // From here on it is known again, also to who opens it later.
    drop(file);
    library.shared.recent.clear();
    assert!(is_proven(&old(&library).await));
}

#[tokio::test]
async fn what_was_downloaded_and_then_changed_is_noticed_although_it_was_proven() {
    for close in [false, true] {
        let rig = Rig::new(false);
        let sample = Sample::new(2 * PIECE, 1);
        let library = rig.open().await;
        downloaded(&rig, &library, &sample).await;
        let file = reopened(&library, &sample).await;
        sample.check(&file).await;
        let mut other = sample.content.to_vec();
        other[0] ^= 1;
        if close {
            drop(file);
            library.shared.recent.clear();
        }
        // As a copy with its times, so that only the inode tells.
        let times = fs::metadata(rig.path("a.bin")).unwrap().modified().unwrap();
        fs::write(rig.path("new"), other).unwrap();
        fs::File::options().write(true).open(rig.path("new")).unwrap().set_modified(times).unwrap();
        fs::rename(rig.path("new"), rig.path("a.bin")).unwrap();
        match library.open_recent(&sample.id()).await.unwrap() {
            None => assert!(close),
            Some(file) => {
                let read = file.read_piece(sample.piece(0).0).await;
                assert!(matches!(read, Err(LibraryError::Changed { .. })), "{read:?}");
            }
        }
        assert!(library.entry(&sample.id()).unwrap().withdrawn);
        assert!(library.open_recent(&sample.id()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_was_published_is_hashed_again_only_while_a_change_could_go_unseen() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let open = async |path: &std::path::Path| {
        let published = publish(&library, path, PublishOptions::default(), |_| {}).await.unwrap();
        library.open_recent(&published.id).await.unwrap().unwrap()
    };
    // One that was written to a moment before it was read, whenever it was added.
    let sample = Sample::new(100, 1);
    let path = rig.path("new");
    fs::write(&path, &sample.content).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    let since_ms = metadata.ctime() as u64 * 1000 + metadata.ctime_nsec() as u64 / 1_000_000;
    for (since_ms, proven) in [(since_ms, false), (since_ms + 5000, true)] {
        let new = NewPublished {
            manifest: sample.manifest.clone(),
            kind: FileKind::File,
            name: Some("new".parse().unwrap()),
            member_of: None,
            linked: Some((path.clone(), Fingerprint::of(&metadata))),
            since_ms,
        };
        library.shared.add_published(vec![new], Vec::new()).await.unwrap();
        library.shared.recent.clear();
        assert_eq!(is_proven(&reopened(&library, &sample).await), proven);
    }
    // A file that nobody wrote to within the last seconds.
    let old = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    assert!(is_proven(&open(&old).await));
}

#[tokio::test]
async fn files_that_are_read_again_and_again_stay_open_but_not_too_many() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let mut held = Vec::new();
    for seed in 0..40 {
        let sample = Sample::new(100, seed);
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        held.push(Arc::downgrade(&reopened(&library, &sample).await));
    }
    let open: Vec<bool> = held.iter().map(|file| file.strong_count() > 0).collect();
    assert_eq!(open, [vec![false; 8], vec![true; 32]].concat());
}

#[tokio::test]
async fn a_held_file_goes_with_its_removal_and_with_the_library() {
    let rig = Rig::new(true);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    for end in ["removed", "closed", "dropped"] {
        let library = if end == "removed" { Arc::clone(&library) } else { rig.open().await };
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        drop(file);
        let held = Arc::downgrade(&reopened(&library, &sample).await);
        assert_eq!(held.strong_count(), 1);
        match end {
            "removed" => library.remove(&sample.id()).await.unwrap(),
            "closed" => library.close().await.unwrap(),
            _ => drop(library),
        }
        // The task that opened it may be about to end.
        let gone = async {
            while held.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect(end);
    }
}

#[tokio::test]
async fn a_linked_file_that_vanished_while_it_was_open_is_not_taken_for_complete() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    downloaded(&rig, &library, &sample).await;
    let held = reopened(&library, &sample).await;
    assert!(held.is_complete());
    fs::remove_file(rig.path("a.bin")).unwrap();
    assert!(library.open_file(&sample.id()).await.unwrap().is_none());
    assert!(library.entry(&sample.id()).unwrap().withdrawn);
    let file = sample.create(&library, "a", Destination::Library).await;
    assert_eq!(file.have_count(), 0, "it begins anew");
}

#[tokio::test]
async fn what_nobody_asks_for_is_closed_after_a_while_and_what_is_asked_for_is_not() {
    let rig = Rig::new(false);
    let (sample, other) = (Sample::new(2 * PIECE, 1), Sample::new(PIECE, 2));
    let library = rig.open().await;
    downloaded(&rig, &library, &sample).await;
    other.create(&library, "b", rig.to("b.bin", false)).await.write_pieces(other.all()).await.unwrap();
    let unused = Arc::downgrade(&reopened(&library, &sample).await);
    library.checkpoint_all().await.unwrap();
    tokio::time::pause();
    for _ in 0..4 {
        reopened(&library, &other).await;
        assert!(unused.upgrade().is_some());
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    let used = Arc::downgrade(&reopened(&library, &other).await);
    tokio::time::sleep(Duration::from_secs(7)).await;
    tokio::time::resume();
    // Closing is done beside.
    while unused.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
    assert!(used.upgrade().is_some());
}
