//! Opening of foreign, damaged and newer databases.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enjambre_core::{Batch, Durability, Key, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_storage_sled::SledSettings;

const SPACE: Space = Space::new("s");

async fn open(folder: &Path) -> Result<Arc<dyn Storage>, StorageError> {
    enjambre_storage_sled::open(&SledSettings::default(), &Place::new(folder, Tenancy::Single), Role::Records)
        .await
}

/// Creates a database with entries and returns its path.
async fn filled(folder: &Path) -> std::path::PathBuf {
    let storage = open(folder).await.expect("it opens");
    for number in 0..200u32 {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(number.to_be_bytes().to_vec()).expect("4 bytes"), vec![7; 500]);
        storage.commit(batch, Durability::Buffered).await.expect("it commits");
    }
    storage.close().await.expect("it closes");
    folder.join("library.sled")
}

/// Opens a database that was closed. A process that another test is starting may hold a copy of its lock until it executes.
fn open_closed(config: &sled::Config) -> sled::Db {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match config.open() {
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

#[tokio::test]
async fn newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    {
        let db = open_closed(&sled::Config::new().path(&path).segment_size(4 << 20));
        db.open_tree("enjambre").unwrap().insert("format", &2u64.to_be_bytes()).unwrap();
        db.flush().unwrap();
    }
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}

#[tokio::test]
async fn foreign_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    {
        let db = sled::open(folder.path().join("library.sled")).unwrap();
        db.open_tree("foreign").unwrap().insert("k", "v").unwrap();
        db.flush().unwrap();
    }
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn database_of_other_role_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    std::fs::rename(&path, folder.path().join("library-content.sled")).unwrap();
    let outcome = enjambre_storage_sled::open(
        &SledSettings::default(),
        &Place::new(folder.path(), Tenancy::Single),
        Role::Content,
    )
    .await;
    assert!(matches!(outcome, Err(StorageError::Corrupt { .. })), "{outcome:?}");
}

#[tokio::test]
async fn file_instead_of_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("library.sled"), "a file").unwrap();
    assert!(open(folder.path()).await.is_err());
}

#[tokio::test]
async fn missing_directories_are_created_for_both_roles() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SledSettings { path: Some("deep/er/catalogue.sled".into()), ..SledSettings::default() };
    for role in [Role::Records, Role::Content] {
        let storage =
            enjambre_storage_sled::open(&settings, &Place::new(folder.path(), Tenancy::Single), role)
                .await
                .unwrap();
        storage.close().await.unwrap();
    }
    for name in ["catalogue.sled", "catalogue-content.sled"] {
        assert!(folder.path().join("deep/er").join(name).is_dir(), "{name}");
    }
}

/// sled 0.34 alone refuses such a database forever.
#[tokio::test]
async fn unfinished_snapshot_is_removed_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    std::fs::write(path.join("snap.FFFFFFFFFFFFFFFF.generating"), b"").unwrap();
    assert_filled(folder.path()).await;
}

async fn assert_filled(folder: &Path) {
    let storage = open(folder).await.unwrap();
    let last = Key::new(199u32.to_be_bytes().to_vec()).unwrap();
    let found = storage.get(SPACE, &[last]).await.unwrap();
    assert_eq!(found[0].as_deref(), Some(&[7; 500][..]));
    storage.close().await.unwrap();
}

/// sled never syncs blob files, so a power cut would lose them.
#[tokio::test]
async fn largest_values_create_no_blob_files() {
    let folder = tempfile::tempdir().unwrap();
    let storage = enjambre_storage_sled::open(
        &SledSettings::default(),
        &Place::new(folder.path(), Tenancy::Single),
        Role::Content,
    )
    .await
    .unwrap();
    for number in 0..300u32 {
        let mut batch = Batch::new();
        let value = vec![number as u8; storage.limits().max_value];
        // An order that fills leaves from all sides.
        let key = (number * 7919 % 300).to_be_bytes().to_vec();
        batch.put(SPACE, Key::new(key).unwrap(), value);
        storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    storage.close().await.unwrap();
    let blobs = folder.path().join("library-content.sled/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
}
