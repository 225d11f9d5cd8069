//! Linked files with changed metadata, missing files, and several paths with the same content.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::library::entry::{LibraryEvent, Location, MAX_WITHDRAWN, WithdrawReason};
use crate::library::error::LibraryError;
use crate::library::publish::PublishOptions;
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

async fn published(library: &Library, path: &Path) -> FileId {
    library.publish(path, PublishOptions::default(), |_| {}).await.unwrap().id
}

async fn content_of(library: &Library, id: &FileId) -> Result<Vec<u8>, LibraryError> {
    let file = library.open_cached(id).await?.ok_or_else(|| LibraryError::not_found(id))?;
    let mut content = Vec::new();
    for piece in file.layout().pieces() {
        content.extend_from_slice(&file.read_piece(piece).await?);
    }
    Ok(content)
}

/// Waits until the task that watches linked files has reached a state.
async fn wait_until(mut reached: impl FnMut() -> bool) {
    for _ in 0..500 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("timed out");
}

fn overwrite(path: &Path, offset: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"other", offset).unwrap();
}

#[tokio::test]
async fn changed_metadata_keeps_file_offered() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("mode", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap()),
        ("hard link", |path| fs::hard_link(path, path.with_extension("link")).unwrap()),
        ("time", |path| {
            let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            fs::File::open(path).unwrap().set_modified(time).unwrap();
        }),
        ("moved and back", |path| {
            fs::rename(path, path.with_extension("away")).unwrap();
            fs::rename(path.with_extension("away"), path).unwrap();
        }),
        ("copy", |path| {
            fs::copy(path, path.with_extension("copy")).unwrap();
            fs::rename(path.with_extension("copy"), path).unwrap();
        }),
    ];
    for (what, change) in changes {
        for size in [1000, 3 * PIECE] {
            let rig = Rig::new(false);
            let sample = Sample::new(size, 1);
            fs::write(rig.path("a"), &sample.content).unwrap();
            let mut library = rig.open().await;
            let id = published(&library, &rig.path("a")).await;
            assert_eq!(content_of(&library, &id).await.unwrap(), sample.content);
            let mut events = library.events();
            change(&rig.path("a"));
            if size < PIECE {
                let read = library.read_small(&[id]).await.unwrap();
                assert_eq!(read.content, sample.content, "{what}");
            }
            assert_eq!(content_of(&library, &id).await.unwrap(), sample.content, "{what}");
            assert!(library.offers()[0].complete, "{what}");
            // It is hashed in the background, again if the change was too recent for the clock of the file system.
            suspect(&library, &[id]);
            wait_until(|| {
                library.inner.add_suspect(&id);
                library.inner.state.lock().slots[&id].verified
            })
            .await;
            while let Ok(event) = events.try_recv() {
                assert!(!matches!(event, LibraryEvent::Withdrawn(_)), "{what}");
            }
            // Changed while the library is closed.
            library.close().await.unwrap();
            fs::set_permissions(rig.path("a"), fs::Permissions::from_mode(0o640)).unwrap();
            library = rig.open().await;
            assert_eq!(content_of(&library, &id).await.unwrap(), sample.content, "{what}");
            assert!(library.offers()[0].complete, "{what}");
        }
    }
}

#[tokio::test]
async fn changed_content_is_found_in_background() {
    let rig = Rig::new(false);
    let sample = Sample::new(4 * PIECE, 1);
    fs::write(rig.path("a"), &sample.content).unwrap();
    let library = rig.open().await;
    let id = published(&library, &rig.path("a")).await;
    overwrite(&rig.path("a"), 3 * PIECE as u64);
    // Reads a valid piece only, unless the change is found first.
    let file = library.open_file(&id).await.unwrap().unwrap();
    if let Ok(content) = file.read_piece(sample.piece(0).0).await {
        assert_eq!(content, sample.piece(0).1);
    }
    wait_until(|| library.entry(&id).unwrap().withdrawn == Some(WithdrawReason::Changed)).await;
    assert!(library.offers().is_empty());
    // The original content returns.
    fs::write(rig.path("a"), &sample.content).unwrap();
    wait_until(|| library.entry(&id).unwrap().withdrawn.is_none()).await;
    assert_eq!(content_of(&library, &id).await.unwrap(), sample.content);
}

#[tokio::test]
async fn missing_file_is_offered_again_when_found() {
    for restart in [false, true] {
        let rig = Rig::new(false);
        let sample = Sample::new(2 * PIECE, 1);
        fs::create_dir(rig.path("disk")).unwrap();
        fs::write(rig.path("disk/a"), &sample.content).unwrap();
        let mut library = rig.open().await;
        let id = published(&library, &rig.path("disk/a")).await;
        if restart {
            library.close().await.unwrap();
        }
        fs::rename(rig.path("disk"), rig.path("unmounted")).unwrap();
        if restart {
            library = rig.open().await;
        }
        assert!(content_of(&library, &id).await.is_err());
        assert_eq!(library.entry(&id).unwrap().withdrawn, Some(WithdrawReason::Missing));
        assert!(library.offers().is_empty());
        fs::rename(rig.path("unmounted"), rig.path("disk")).unwrap();
        wait_until(|| library.offers().len() == 1).await;
        assert_eq!(content_of(&library, &id).await.unwrap(), sample.content);
    }
}

#[tokio::test]
async fn totals_count_all_files_and_contain_some_withdrawn_ones() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    for (dir, files) in [("tree", 2), ("disk", MAX_WITHDRAWN + 2)] {
        fs::create_dir(rig.path(dir)).unwrap();
        for n in 0..files {
            fs::write(rig.path(dir).join(n.to_string()), format!("{dir} {n}")).unwrap();
        }
    }
    published(&library, &rig.path("tree")).await;
    for n in 0..MAX_WITHDRAWN + 2 {
        published(&library, &rig.path("disk").join(n.to_string())).await;
    }
    let sample = Sample::new(2 * PIECE, 1);
    let file = sample.create(&library, "wanted", Destination::Library).await;
    file.write_pieces(vec![sample.piece(0)]).await.unwrap();
    fs::rename(rig.path("disk"), rig.path("unmounted")).unwrap();
    for entry in library.entries() {
        let _ = content_of(&library, &entry.id).await;
    }
    let (totals, entries) = (library.totals(), library.entries());
    let files = MAX_WITHDRAWN as u64 + 2;
    assert_eq!((totals.named, totals.published), (files + 2, files + 1), "no members of directories");
    assert_eq!((totals.complete, totals.incomplete, totals.withdrawn), (3, 1, files));
    assert_eq!(totals.bytes, entries.iter().map(|entry| entry.stored_bytes()).sum::<u64>());
    let withdrawn = entries.into_iter().filter(|entry| entry.withdrawn.is_some());
    assert_eq!(totals.withdrawn_files, withdrawn.take(MAX_WITHDRAWN).collect::<Vec<_>>());
}

#[tokio::test]
async fn file_missing_while_it_is_hashed_is_offered_again() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    fs::create_dir(rig.path("disk")).unwrap();
    fs::write(rig.path("disk/a"), &sample.content).unwrap();
    let library = rig.open().await;
    let id = published(&library, &rig.path("disk/a")).await;
    fs::rename(rig.path("disk"), rig.path("unmounted")).unwrap();
    suspect(&library, &[id]);
    wait_until(|| library.entry(&id).unwrap().withdrawn == Some(WithdrawReason::Missing)).await;
    fs::rename(rig.path("unmounted"), rig.path("disk")).unwrap();
    wait_until(|| library.offers().len() == 1).await;
    assert_eq!(content_of(&library, &id).await.unwrap(), sample.content);
}

/// Has the files hashed in the background.
fn suspect(library: &Library, ids: &[FileId]) {
    let mut state = library.inner.state.lock();
    for id in ids {
        state.slots.get_mut(id).unwrap().verified = false;
        state.suspects.insert(*id);
    }
    library.inner.suspect_added.notify_one();
}

/// A library with two published files, and a storage of the index with faults.
async fn with_two_files(rig: &Rig) -> (Arc<Library>, [FileId; 2], Arc<FaultyStorage>) {
    let index = Arc::new(FaultyStorage::new(Arc::new(rig.index.open()), 1));
    let library = rig.open_on(index.clone()).await;
    let mut ids = Vec::new();
    fs::create_dir(rig.path("disk")).unwrap();
    for (name, seed) in [("a", 1), ("disk/b", 2)] {
        fs::write(rig.path(name), &Sample::new(2 * PIECE, seed).content).unwrap();
        ids.push(published(&library, &rig.path(name)).await);
    }
    (library, ids.try_into().unwrap(), index)
}

#[tokio::test]
async fn missing_file_is_found_while_another_is_hashed() {
    let rig = Rig::new(false);
    let (library, [a, b], index) = with_two_files(&rig).await;
    let open = library.open_file(&b).await.unwrap().unwrap();
    // The hashing begins with the piece hashes, and stays there.
    index.add(Operation::Get, When::Always, Fault::Delay(Duration::from_secs(3600)));
    suspect(&library, &[a]);
    wait_until(|| index.faults_met() == 1).await;
    fs::rename(rig.path("disk"), rig.path("unmounted")).unwrap();
    assert!(open.read_piece(open.layout().last().unwrap()).await.is_err());
    assert_eq!(library.entry(&b).unwrap().withdrawn, Some(WithdrawReason::Missing));
    fs::rename(rig.path("unmounted"), rig.path("disk")).unwrap();
    wait_until(|| library.entry(&b).unwrap().withdrawn.is_none()).await;
}

#[tokio::test]
async fn failed_check_of_one_file_does_not_stop_others() {
    let rig = Rig::new(false);
    let (library, ids, index) = with_two_files(&rig).await;
    for name in ["a", "disk/b"] {
        overwrite(&rig.path(name), 0);
    }
    index.add(Operation::Get, When::Nth(1), Fault::Fail);
    suspect(&library, &ids);
    // The failed check is repeated.
    wait_until(|| ids.iter().all(|id| library.entry(id).unwrap().withdrawn.is_some())).await;
    assert_eq!(index.faults_met(), 1);
}

#[tokio::test]
async fn same_content_is_served_from_another_path() {
    for size in [1000, 2 * PIECE] {
        let rig = Rig::new(false);
        let sample = Sample::new(size, 1);
        for name in ["a", "b", "c"] {
            fs::write(rig.path(name), &sample.content).unwrap();
        }
        let library = rig.open().await;
        let id = published(&library, &rig.path("a")).await;
        assert_eq!(published(&library, &rig.path("b")).await, id);
        published(&library, &rig.path("c")).await;
        assert_eq!(content_of(&library, &id).await.unwrap(), sample.content);
        let at = |name: &str| Location::Linked { path: rig.path(name).canonicalize().unwrap() };
        assert_eq!(library.entry(&id).unwrap().location, at("a"));
        fs::remove_file(rig.path("a")).unwrap();
        assert_eq!(content_of(&library, &id).await.unwrap(), sample.content);
        assert_eq!(library.entry(&id).unwrap().location, at("b"));
        rig.kill(library).await;
        overwrite(&rig.path("b"), 0);
        let library = rig.open().await;
        assert_eq!(content_of(&library, &id).await.unwrap(), sample.content);
        assert_eq!(library.entry(&id).unwrap().location, at("c"));
        assert!(library.offers()[0].complete);
        fs::remove_file(rig.path("c")).unwrap();
        assert!(content_of(&library, &id).await.is_err());
        fs::write(rig.path("a"), &sample.content).unwrap();
        wait_until(|| library.offers().len() == 1).await;
        assert_eq!(library.entry(&id).unwrap().location, at("a"));
    }
}

#[tokio::test]
async fn member_at_two_paths_survives_loss_of_one() {
    let rig = Rig::new(false);
    fs::create_dir(rig.path("dir")).unwrap();
    for name in ["dir/a", "dir/b"] {
        fs::write(rig.path(name), b"same").unwrap();
    }
    let library = rig.open().await;
    let id = published(&library, &rig.path("dir")).await;
    let member = library.collection(&id).await.unwrap().members()[0].id;
    fs::remove_file(rig.path("dir/a")).unwrap();
    assert_eq!(library.read_small(&[member]).await.unwrap().content, &b"same"[..]);
    assert_eq!(library.entry(&member).unwrap().withdrawn, None);
}

#[tokio::test]
async fn file_is_removed_with_its_last_name() {
    let rig = Rig::new(false);
    let sample = Sample::new(1000, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", Destination::Library).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    sample.create(&library, "b", Destination::Library).await;
    let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
    let mut events = library.events();
    assert_eq!(library.remove_name(&sample.id(), &a).await.unwrap().as_ref(), Some(&b));
    rig.kill(library).await;
    assert!(events.try_recv().is_err(), "the file is still offered");
    let library = rig.open().await;
    assert!(library.find("a").is_err());
    assert_eq!(library.find("b").unwrap().names, std::slice::from_ref(&b));
    sample.check(&library.open_file(&sample.id()).await.unwrap().unwrap()).await;
    assert_eq!(library.remove_name(&sample.id(), &b).await.unwrap(), None);
    assert!(library.entry(&sample.id()).is_none());
    assert!(rig.content.entries().iter().all(|(_, entries)| *entries == 0));
}
