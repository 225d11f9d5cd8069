//! What is no database of ours, in use or damaged is refused with an error that says so, an error of the disk passes, and
//! content takes hardly more room than it has bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, KeyRange, Space};
use enjambre_core::storage::{Role, Storage};
use enjambre_redb::RedbSettings;
use redb::TableDefinition;

const SPACE: Space = Space::new("content");

async fn open(path: &Path) -> Result<Arc<dyn Storage>, StorageError> {
    enjambre_redb::open(RedbSettings::default(), path, Role::Records).await
}

async fn put(storage: &dyn Storage, key: &[u8], value: Bytes) {
    let mut batch = Batch::new();
    batch.put(SPACE, Key::new(key.to_vec()).unwrap(), value);
    storage.commit(batch, Durability::Buffered).await.unwrap();
}

#[tokio::test]
async fn a_second_opening_finds_it_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/a.redb");
    let first = open(&path).await.unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    first.close().await.unwrap();
    open(&path).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn what_is_not_ours_or_for_another_role_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs.redb");
    let theirs = redb::Database::create(&path).unwrap();
    let transaction = theirs.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u64, u64>::new("theirs")).unwrap();
    transaction.commit().unwrap();
    theirs.close().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "no database at all".repeat(1000)).unwrap();
    let content = folder.path().join("ours-content.redb");
    open(&content).await.unwrap().close().await.unwrap();
    for outcome in [
        open(&path).await,
        open(&text).await,
        enjambre_redb::open(RedbSettings::default(), &folder.path().join("ours.redb"), Role::Content).await,
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
    }
    assert_eq!(fs::read_to_string(&text).unwrap().len(), 18_000);
    let theirs = redb::Database::open(&path).unwrap();
    assert_eq!(theirs.begin_write().unwrap().list_tables().unwrap().count(), 1);
}

/// Overwrites a part of the file after the other; each time it opens with all that was written, or gives an error.
#[tokio::test]
async fn a_damaged_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (path, damaged) = (folder.path().join("whole.redb"), folder.path().join("damaged.redb"));
    let storage = open(&path).await.unwrap();
    for number in 0..200u16 {
        put(&*storage, &number.to_be_bytes(), vec![number as u8; 1000].into()).await;
    }
    let whole = storage.scan(SPACE, KeyRange::all(), 1000).await.unwrap();
    storage.close().await.unwrap();
    let settings = RedbSettings { check: true, ..RedbSettings::default() };
    let length = fs::metadata(&path).unwrap().len();
    let mut found = 0;
    for offset in (0..length).step_by(length as usize / 60) {
        fs::copy(&path, &damaged).unwrap();
        File::options().write(true).open(&damaged).unwrap().write_all_at(&[0xa5; 700], offset).unwrap();
        match enjambre_redb::open(settings.clone(), &damaged, Role::Records).await {
            Ok(storage) => {
                assert_eq!(storage.scan(SPACE, KeyRange::all(), 1000).await.unwrap(), whole, "at {offset}");
                storage.close().await.unwrap();
            }
            Err(error) => {
                assert!(matches!(error, StorageError::Corrupt { .. }), "at {offset}: {error:?}");
                found += 1;
            }
        }
    }
    assert!(found > 5, "only {found} of 60 places counted");
}

/// A part of the file is gone for a moment, as with a disk that does not answer.
#[tokio::test]
async fn an_error_of_the_disk_that_passes_leaves_nothing_dead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.redb");
    let settings = RedbSettings { cache_mib: 1, ..RedbSettings::default() };
    let open = async || enjambre_redb::open(settings.clone(), &path, Role::Records).await.unwrap();
    let storage = open().await;
    for number in 0..100u16 {
        put(&*storage, &number.to_be_bytes(), vec![number as u8; 60_000].into()).await;
    }
    storage.close().await.unwrap();
    let storage = open().await;
    let get = async |number: u16| {
        let found = storage.get(SPACE, &[Key::new(number.to_be_bytes().to_vec()).unwrap()]).await;
        found.map(|mut values| values.remove(0))
    };
    let whole = fs::read(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(64 * 1024).unwrap();
    let mut outcomes = Vec::new();
    for number in 0..100 {
        outcomes.push(get(number).await);
        if outcomes.last().unwrap().is_err() {
            break;
        }
    }
    assert!(matches!(outcomes.last(), Some(Err(StorageError::Backend { .. }))), "{outcomes:?}");
    fs::write(&path, whole).unwrap();
    assert!(matches!(get(99).await, Err(StorageError::Unavailable { .. })));
    let again = async {
        loop {
            match get(99).await {
                Err(StorageError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                found => return found,
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(30), again).await.expect("it is opened anew");
    assert_eq!(found.unwrap().unwrap(), vec![99; 60_000]);
}

#[tokio::test]
async fn content_takes_hardly_more_room_than_it_has_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("library.redb");
    let storage = enjambre_redb::open(RedbSettings::default(), &path, Role::Content).await.unwrap();
    let (size, pieces) = (256 * 1024, 256u32);
    // As the library does it: pieces, cut into parts of the largest value.
    for piece in 0..pieces {
        let content = Bytes::from(vec![piece as u8; size]);
        let mut batch = Batch::new();
        for (part, value) in content.chunks(storage.limits().max_value).enumerate() {
            let key = [&[7; 32][..], &piece.to_be_bytes(), &(part as u16).to_be_bytes()].concat();
            batch.put(SPACE, Key::new(key).unwrap(), content.slice_ref(value));
        }
        storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    storage.close().await.unwrap();
    let taken = fs::metadata(folder.path().join("library-content.redb")).unwrap().blocks() * 512;
    let ratio = taken as f64 / (size as f64 * f64::from(pieces));
    println!("{ratio:.3} bytes on the disk for each of 64 MiB");
    assert!((1.0..1.2).contains(&ratio), "{ratio}");
}
