//! Tests that foreign and damaged files are refused, that the engine recovers from a temporary disk error, and how
//! much disk space content takes.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::storage::layers::retry::{Retry, RetryStorage};
use enjambre_core::{Batch, Durability, Key, KeyRange, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_redb::RedbSettings;
use redb::TableDefinition;

const SPACE: Space = Space::new("content");

async fn open(path: &Path) -> Result<Arc<dyn Storage>, StorageError> {
    open_with(RedbSettings::default(), path, Role::Records).await
}

async fn open_with(
    settings: RedbSettings,
    path: &Path,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let settings = RedbSettings { path: Some(path.to_owned()), ..settings };
    enjambre_redb::open(settings, &Place::new("/", Tenancy::Single), role).await
}

async fn put(storage: &dyn Storage, key: &[u8], value: Bytes) {
    let mut batch = Batch::new();
    batch.put(SPACE, Key::new(key.to_vec()).unwrap(), value);
    storage.commit(batch, Durability::Buffered).await.unwrap();
}

#[tokio::test]
async fn foreign_file_or_other_role_is_refused_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("foreign.redb");
    let foreign = redb::Database::create(&path).unwrap();
    let transaction = foreign.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u64, u64>::new("foreign")).unwrap();
    transaction.commit().unwrap();
    foreign.close().unwrap();
    let text = directory.path().join("text");
    fs::write(&text, "not a database file".repeat(1000)).unwrap();
    let content = directory.path().join("own-content.redb");
    open(&content).await.unwrap().close().await.unwrap();
    for outcome in [
        open(&path).await,
        open(&text).await,
        open_with(RedbSettings::default(), &directory.path().join("own.redb"), Role::Content).await,
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
    }
    assert_eq!(fs::read_to_string(&text).unwrap().len(), 19_000);
    let foreign = redb::Database::open(&path).unwrap();
    assert_eq!(foreign.begin_write().unwrap().list_tables().unwrap().count(), 1);
}

/// Overwrites one part of the file at a time. Each time the database opens with all entries, or opening returns an error.
#[tokio::test]
async fn damaged_file_opens_intact_or_returns_error() {
    let directory = tempfile::tempdir().unwrap();
    let (path, damaged) =
        (directory.path().join("deep/er/intact.redb"), directory.path().join("damaged.redb"));
    let storage = open(&path).await.unwrap();
    for number in 0..200u16 {
        put(&*storage, &number.to_be_bytes(), vec![number as u8; 1000].into()).await;
    }
    let intact = storage.scan(SPACE, KeyRange::all(), 1000).await.unwrap();
    storage.close().await.unwrap();
    let settings = RedbSettings { check: true, ..RedbSettings::default() };
    let length = fs::metadata(&path).unwrap().len();
    let mut found = 0;
    for offset in (0..length).step_by(length as usize / 60) {
        fs::copy(&path, &damaged).unwrap();
        File::options().write(true).open(&damaged).unwrap().write_all_at(&[0xa5; 700], offset).unwrap();
        match open_with(settings.clone(), &damaged, Role::Records).await {
            Ok(storage) => {
                assert_eq!(storage.scan(SPACE, KeyRange::all(), 1000).await.unwrap(), intact, "at {offset}");
                storage.close().await.unwrap();
            }
            Err(error) => {
                assert!(matches!(error, StorageError::Corrupt { .. }), "at {offset}: {error:?}");
                found += 1;
            }
        }
    }
    assert!(found > 5, "only {found} of 60 damaged files were detected");
}

/// Removes a part of the file and restores it later, as with a disk that temporarily fails.
#[tokio::test]
async fn engine_reopens_after_temporary_disk_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.redb");
    let settings = RedbSettings { cache_mib: 1, ..RedbSettings::default() };
    let open = async || open_with(settings.clone(), &path, Role::Records).await.unwrap();
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
    let intact = fs::read(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(64 * 1024).unwrap();
    let mut outcomes = Vec::new();
    for number in 0..100 {
        outcomes.push(get(number).await);
        if outcomes.last().unwrap().is_err() {
            break;
        }
    }
    assert!(matches!(outcomes.last(), Some(Err(StorageError::Backend { .. }))), "{outcomes:?}");
    fs::write(&path, intact).unwrap();
    assert!(matches!(get(99).await, Err(StorageError::Unavailable { .. })));
    let retry = Retry { timeout: Some(Duration::from_secs(30)), retries: u32::MAX };
    let retrying = RetryStorage::new(storage.clone(), retry);
    let found = retrying.get(SPACE, &[Key::new(99u16.to_be_bytes().to_vec()).unwrap()]).await;
    assert_eq!(found.unwrap(), [Some(vec![99; 60_000].into())]);
}

#[tokio::test]
async fn content_takes_less_than_1_2_times_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("library.redb");
    let storage = open_with(RedbSettings::default(), &path, Role::Content).await.unwrap();
    let (size, pieces) = (256 * 1024, 256u32);
    // Splits each piece into values of the largest size, as the library does.
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
    let used = fs::metadata(directory.path().join("library-content.redb")).unwrap().blocks() * 512;
    let ratio = used as f64 / (size as f64 * f64::from(pieces));
    println!("disk usage of 64 MiB of content: {ratio:.3} times its size");
    assert!((1.0..1.2).contains(&ratio), "{ratio}");
}
