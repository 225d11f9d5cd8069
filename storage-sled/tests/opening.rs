//! What is no database of ours, or somebody else's, is refused with an error that says so.

use std::path::Path;
use std::sync::Arc;

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, Space};
use enjambre_core::storage::{Role, Storage};
use enjambre_storage_sled::SledSettings;

const SPACE: Space = Space::new("s");

async fn open(folder: &Path) -> Result<Arc<dyn Storage>, StorageError> {
    enjambre_storage_sled::open(&SledSettings::default(), folder, Role::Records).await
}

/// Makes a database with something in it and gives the path of its folder.
async fn filled(folder: &Path) -> std::path::PathBuf {
    let storage = open(folder).await.expect("it opens");
    for number in 0..200u32 {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(number.to_be_bytes().to_vec()).expect("4 bytes"), vec![7; 500]);
        storage.commit(batch, Durability::Buffered).await.expect("it commits");
    }
    storage.close().await.expect("it closes");
    folder.join(SledSettings::default().path)
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    {
        let db = sled::Config::new().path(&path).segment_size(4 << 20).open().unwrap();
        db.open_tree("enjambre").unwrap().insert("format", &2u64.to_be_bytes()).unwrap();
        db.flush().unwrap();
    }
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}

#[tokio::test]
async fn a_database_that_is_not_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    {
        let db = sled::open(folder.path().join(SledSettings::default().path)).unwrap();
        db.open_tree("theirs").unwrap().insert("k", "v").unwrap();
        db.flush().unwrap();
    }
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_database_of_the_other_role_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    std::fs::rename(&path, folder.path().join("enjambre-content.sled")).unwrap();
    let outcome = enjambre_storage_sled::open(&SledSettings::default(), folder.path(), Role::Content).await;
    assert!(matches!(outcome, Err(StorageError::Corrupt { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_file_in_place_of_the_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(SledSettings::default().path), "a file").unwrap();
    assert!(open(folder.path()).await.is_err());
}

#[tokio::test]
async fn a_second_opening_finds_it_locked() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await.unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    first.close().await.unwrap();
    open(folder.path()).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn missing_folders_are_made_and_content_has_a_folder_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SledSettings { path: "deep/er/catalogue.sled".into(), ..SledSettings::default() };
    for role in [Role::Records, Role::Content] {
        let storage = enjambre_storage_sled::open(&settings, folder.path(), role).await.unwrap();
        storage.close().await.unwrap();
    }
    for name in ["catalogue.sled", "catalogue-content.sled"] {
        assert!(folder.path().join("deep/er").join(name).is_dir(), "{name}");
    }
}

/// A kill in the midst of sled's own writes; this kept sled 0.34 from opening the database ever again.
#[tokio::test]
async fn a_snapshot_that_a_kill_left_half_written_keeps_no_database_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    std::fs::write(path.join("snap.FFFFFFFFFFFFFFFF.generating"), b"").unwrap();
    assert_filled(folder.path()).await;
}

/// So did half of the settings, as an older program left them; and its segments stay as they are.
#[tokio::test]
async fn settings_that_a_kill_left_half_written_are_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SledSettings::default().path);
    drop(sled::Config::new().path(&path).open().unwrap());
    let settings = std::fs::read(path.join("conf")).unwrap();
    filled(folder.path()).await;
    for left in [0, 8, 20, settings.len() - 4, settings.len() - 1] {
        std::fs::write(path.join("conf"), &settings[..left]).unwrap();
        assert_filled(folder.path()).await;
        assert_eq!(std::fs::read(path.join("conf")).unwrap(), settings, "after {left} bytes of them");
    }
}

async fn assert_filled(folder: &Path) {
    let storage = open(folder).await.unwrap();
    let last = Key::new(199u32.to_be_bytes().to_vec()).unwrap();
    let found = storage.get(SPACE, &[last]).await.unwrap();
    assert_eq!(found[0].as_deref(), Some(&[7; 500][..]));
    storage.close().await.unwrap();
}

/// sled never syncs those files, so a power cut would take them.
#[tokio::test]
async fn the_largest_values_lie_in_the_log_and_not_in_files_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let storage =
        enjambre_storage_sled::open(&SledSettings::default(), folder.path(), Role::Content).await.unwrap();
    for number in 0..300u32 {
        let mut batch = Batch::new();
        let value = vec![number as u8; storage.limits().max_value];
        // In an order that fills leaves from all sides.
        let key = (number * 7919 % 300).to_be_bytes().to_vec();
        batch.put(SPACE, Key::new(key).unwrap(), value);
        storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    storage.close().await.unwrap();
    let blobs = folder.path().join("enjambre-content.sled/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
}
