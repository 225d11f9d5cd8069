//! Cases outside the conformance test suite: truncated, damaged, foreign and locked files.

use std::fs::{File, read, write};
use std::path::Path;
use std::sync::Arc;

use enjambre_core::{Batch, Durability, Key, KeyRange, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_journal::{JournalSettings, open};

const SPACE: Space = Space::new("s");

async fn open_file(path: &Path) -> Result<Arc<dyn Storage>, StorageError> {
    let settings = JournalSettings { path: Some(path.to_owned()) };
    open(&settings, &Place::new("/", Tenancy::Single), Role::Records).await
}

/// Opens the journal, commits `commits` batches and closes it.
async fn fill(path: &Path, commits: u8, durability: Durability) {
    let storage = open_file(path).await.expect("open");
    for number in 0..commits {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(vec![number]).expect("key of 1 byte"), vec![number; 100]);
        storage.commit(batch, durability).await.expect("commit");
    }
    storage.close().await.expect("close");
}

#[tokio::test]
async fn incomplete_record_at_end_is_truncated() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("a.journal");
    fill(&path, 3, Durability::Durable).await;
    let intact = read(&path).expect("read");
    // A record whose write was interrupted by a crash.
    write(&path, [&intact[..], &intact[16..99]].concat()).expect("write");
    let storage = open_file(&path).await.expect("open");
    assert_eq!(storage.scan(SPACE, KeyRange::all(), 9).await.expect("scan").len(), 3);
    storage.close().await.expect("close");
    assert!(read(&path).expect("read") == intact);
    // Synced records are missing.
    File::options().write(true).open(&path).and_then(|file| file.set_len(200)).expect("truncate");
    let error = open_file(&path).await.expect_err("open fails");
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn interrupted_creation_is_repeated() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("a.journal");
    fill(&path, 0, Durability::Durable).await;
    let created = read(&path).expect("read");
    assert_eq!(created.len(), 16);
    // After a power cut the file has the written bytes, or only their number.
    for partial in (0..=16).flat_map(|length| [created[..length].to_vec(), vec![0; length]]) {
        write(&path, &partial).expect("write");
        fill(&path, 2, Durability::Durable).await;
        fill(&path, 3, Durability::Buffered).await;
    }
    let storage = open_file(&path).await.expect("open");
    assert_eq!(storage.scan(SPACE, KeyRange::all(), 9).await.expect("scan").len(), 3);
}

#[tokio::test]
async fn damaged_foreign_and_locked_files_are_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("a.journal");
    fill(&path, 3, Durability::Buffered).await;
    let intact = read(&path).expect("read");
    for index in (0..intact.len()).step_by(7) {
        let mut damaged = intact.clone();
        damaged[index] ^= 0x55;
        write(&path, &damaged).expect("write");
        let outcome = open_file(&path).await;
        assert!(matches!(outcome, Err(StorageError::Corrupt { .. })), "byte {index}: {outcome:?}");
        assert!(read(&path).expect("read") == damaged, "the file is unchanged");
    }
    for foreign in ["short", "a text file of the user, longer than the header"] {
        write(&path, foreign).expect("write");
        assert!(open_file(&path).await.is_err(), "{foreign}");
    }
    write(&path, &intact).expect("write");
    let _first = open_file(&path).await.expect("open");
    let error = open_file(&path).await.expect_err("the file is locked");
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
}
