//! What the kit does not look at: a file that is cut off, damaged, somebody else's, or in use.

use std::fs::{File, read, write};
use std::path::Path;

use enjambre_core::storage::Role;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, KeyRange, Space};
use enjambre_journal::open;

const SPACE: Space = Space::new("s");

/// Commits so many times and closes.
async fn fill(path: &Path, commits: u8, durability: Durability) {
    let storage = open(path, Role::Records).await.expect("it opens");
    for number in 0..commits {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(vec![number]).expect("1 byte"), vec![number; 100]);
        storage.commit(batch, durability).await.expect("it commits");
    }
    storage.close().await.expect("it closes");
}

#[tokio::test]
async fn an_end_that_was_never_synced_is_cut_off_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("a.journal");
    fill(&path, 3, Durability::Durable).await;
    let whole = read(&path).expect("it can be read");
    // A record that was being written when the process died.
    write(&path, [&whole[..], &whole[16..99]].concat()).expect("it can be written");
    let storage = open(&path, Role::Records).await.expect("it opens");
    assert_eq!(storage.scan(SPACE, KeyRange::all(), 9).await.expect("a page").len(), 3);
    storage.close().await.expect("it closes");
    assert!(read(&path).expect("it can be read") == whole);
    // What was synced is missing.
    File::options().write(true).open(&path).and_then(|file| file.set_len(200)).expect("it can be cut");
    let error = open(&path, Role::Records).await.expect_err("a journal without its end");
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_making_that_was_cut_off_is_done_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("a.journal");
    fill(&path, 0, Durability::Durable).await;
    let made = read(&path).expect("it can be read");
    assert_eq!(made.len(), 16);
    // The bytes came to the disk, or only their number.
    for begun in (0..=16).flat_map(|length| [made[..length].to_vec(), vec![0; length]]) {
        write(&path, &begun).expect("it can be written");
        fill(&path, 2, Durability::Durable).await;
        fill(&path, 3, Durability::Buffered).await;
    }
    let storage = open(&path, Role::Records).await.expect("it opens");
    assert_eq!(storage.scan(SPACE, KeyRange::all(), 9).await.expect("a page").len(), 3);
}

#[tokio::test]
async fn damaged_foreign_and_used_files_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("a.journal");
    fill(&path, 3, Durability::Buffered).await;
    let whole = read(&path).expect("it can be read");
    for index in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[index] ^= 0x55;
        write(&path, &damaged).expect("it can be written");
        let outcome = open(&path, Role::Records).await;
        assert!(matches!(outcome, Err(StorageError::Corrupt { .. })), "byte {index}: {outcome:?}");
        assert!(read(&path).expect("it can be read") == damaged, "it stays as it is");
    }
    for foreign in ["short", "something of the user's that is longer"] {
        write(&path, foreign).expect("it can be written");
        assert!(open(&path, Role::Records).await.is_err(), "{foreign}");
    }
    write(&path, &whole).expect("it can be written");
    let _first = open(&path, Role::Records).await.expect("it opens");
    let error = open(&path, Role::Records).await.expect_err("it is in use");
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
}
