//! The cache of open files and verified pieces: hashed once, and again after a change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::*;
use crate::library::error::LibraryError;
use crate::library::linked::Fingerprint;
use crate::library::publish::NewPublished;
use crate::library::publish::PublishOptions;
use enjambre_core::UnixMillis;

async fn downloaded(rig: &Rig, library: &Library, sample: &Sample) {
    let file = sample.create(library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
}

async fn reopened(library: &Library, sample: &Sample) -> Arc<LibraryFile> {
    library.open_cached(&sample.id()).await.unwrap().unwrap()
}

fn is_verified(file: &Arc<LibraryFile>) -> bool {
    file.state.lock().verified.is_full()
}

#[tokio::test]
async fn verified_pieces_are_not_hashed_again_until_restart() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    downloaded(&rig, &library, &sample).await;
    // A file that was not written recently.
    let old = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let published = library.publish(&old, PublishOptions::default(), |_| {}).await.unwrap();
    let old = async |library: &Library| library.open_cached(&published.id).await.unwrap().unwrap();
    assert!(is_verified(&reopened(&library, &sample).await));
    assert!(is_verified(&old(&library).await));
    rig.kill(library).await;
    let library = rig.open().await;
    assert!(!is_verified(&reopened(&library, &sample).await));
    let file = old(&library).await;
    assert!(!is_verified(&file));
    file.read_piece(file.layout().last().unwrap()).await.unwrap();
    // Once all pieces are verified again, that is known after the file is opened again.
    drop(file);
    library.inner.cache.clear();
    assert!(is_verified(&old(&library).await));
}

#[tokio::test]
async fn change_of_verified_linked_file_is_detected() {
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
            library.inner.cache.clear();
        }
        // With the times of the original, so that only the inode differs.
        let times = fs::metadata(rig.path("a.bin")).unwrap().modified().unwrap();
        fs::write(rig.path("new"), other).unwrap();
        fs::File::options().write(true).open(rig.path("new")).unwrap().set_modified(times).unwrap();
        fs::rename(rig.path("new"), rig.path("a.bin")).unwrap();
        match library.open_cached(&sample.id()).await.unwrap() {
            None => assert!(close),
            Some(file) => {
                let read = file.read_piece(sample.piece(0).0).await;
                // Not found if the check in the background was first.
                assert!(
                    matches!(read, Err(LibraryError::Changed { .. } | LibraryError::NotFound(_))),
                    "{read:?}"
                );
            }
        }
        assert!(library.entry(&sample.id()).unwrap().withdrawn.is_some());
        assert!(library.open_cached(&sample.id()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn published_file_is_hashed_again_only_while_unsettled() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let open = async |path: &std::path::Path| {
        let published = library.publish(path, PublishOptions::default(), |_| {}).await.unwrap();
        library.open_cached(&published.id).await.unwrap().unwrap()
    };
    // A file that was written shortly before it was read.
    let sample = Sample::new(100, 1);
    let path = rig.path("new");
    fs::write(&path, &sample.content).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    let since = UnixMillis(metadata.ctime() as u64 * 1000 + metadata.ctime_nsec() as u64 / 1_000_000);
    for (since, proven) in [(since, false), (since + Duration::from_secs(5), true)] {
        let new = NewPublished {
            manifest: sample.manifest.clone(),
            kind: FileKind::File,
            name: Some("new".parse().unwrap()),
            member_of: None,
            linked: Some((path.clone(), Fingerprint::of(&metadata))),
            since,
        };
        library.files.register(vec![new], Vec::new()).await.unwrap();
        library.inner.cache.clear();
        assert_eq!(is_verified(&reopened(&library, &sample).await), proven);
    }
    // A file that was not written within the last seconds.
    let old = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    assert!(is_verified(&open(&old).await));
}

#[tokio::test]
async fn cache_keeps_limited_number_of_files_open() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let mut cached = Vec::new();
    for seed in 0..40 {
        let sample = Sample::new(100, seed);
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        cached.push(Arc::downgrade(&reopened(&library, &sample).await));
    }
    let open: Vec<bool> = cached.iter().map(|file| file.strong_count() > 0).collect();
    assert_eq!(open, [vec![false; 8], vec![true; 32]].concat());
}

#[tokio::test]
async fn cached_file_is_closed_with_removal_and_library() {
    let rig = Rig::new(true);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    for end in ["removed", "closed", "dropped"] {
        let library = if end == "removed" { Arc::clone(&library) } else { rig.open().await };
        let file = sample.create(&library, "a", Destination::Library).await;
        file.write_pieces(sample.all()).await.unwrap();
        file.finish(true).await.unwrap();
        drop(file);
        let cached = Arc::downgrade(&reopened(&library, &sample).await);
        assert_eq!(cached.strong_count(), 1);
        match end {
            "removed" => library.remove(&sample.id()).await.unwrap(),
            "closed" => library.close().await.unwrap(),
            _ => drop(library),
        }
        // The task that opened the file may still hold it.
        let gone = async {
            while cached.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect(end);
    }
}

#[tokio::test]
async fn deleted_open_linked_file_is_not_complete() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    downloaded(&rig, &library, &sample).await;
    let cached = reopened(&library, &sample).await;
    assert!(cached.is_complete());
    fs::remove_file(rig.path("a.bin")).unwrap();
    assert!(library.open_file(&sample.id()).await.unwrap().is_none());
    assert!(library.entry(&sample.id()).unwrap().withdrawn.is_some());
    let file = sample.create(&library, "a", Destination::Library).await;
    assert_eq!(file.have_count(), 0, "the download starts from the beginning");
}

#[tokio::test]
async fn idle_cached_file_is_closed_and_used_one_is_not() {
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
    // Files are closed in a blocking task.
    while unused.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
    assert!(used.upgrade().is_some());
}
