//! Opening of foreign, damaged, newer and unfinished databases.

use std::path::Path;
use std::sync::Arc;

use enjambre_core::storage::inspect::with_causes;
use enjambre_core::{Batch, Durability, Key, KeyRange, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_storage_sqlite::SqliteSettings;

const SPACE: Space = Space::new("s");

async fn open(folder: &Path) -> Result<Arc<dyn Storage>, StorageError> {
    enjambre_storage_sqlite::open(
        &SqliteSettings::default(),
        &Place::new(folder, Tenancy::Single),
        Role::Records,
    )
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
    folder.join("library.db")
}

#[tokio::test]
async fn newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}

#[tokio::test]
async fn foreign_database_is_refused_and_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("library.db");
    for content in [vec![b'x'; 10_000], b"SQLite format 3\0".repeat(400)] {
        std::fs::write(&path, &content).unwrap();
        let error = open(folder.path()).await.unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
        let text = with_causes(&error);
        assert!(text.contains("restore the database from a backup") && !text.contains("code"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE foreign_table (x)").unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    std::fs::remove_file(&path).unwrap();
    open(folder.path()).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn database_of_other_role_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    std::fs::rename(&path, folder.path().join("library-content.db")).unwrap();
    let settings = SqliteSettings::default();
    let outcome =
        enjambre_storage_sqlite::open(&settings, &Place::new(folder.path(), Tenancy::Single), Role::Content)
            .await;
    assert!(matches!(outcome, Err(StorageError::Corrupt { .. })), "{outcome:?}");
}

#[tokio::test]
async fn damaged_page_is_reported_as_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path()).await;
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 8192);
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    let outcome = async {
        let storage = open(folder.path()).await?;
        storage.scan(SPACE, KeyRange::all(), 1000).await
    };
    let error = outcome.await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn missing_directories_are_created_for_both_roles() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings { path: Some("deep/er/catalogue.db".into()), ..SqliteSettings::default() };
    for role in [Role::Records, Role::Content] {
        let storage =
            enjambre_storage_sqlite::open(&settings, &Place::new(folder.path(), Tenancy::Single), role)
                .await
                .unwrap();
        storage.close().await.unwrap();
    }
    for name in ["catalogue.db", "catalogue-content.db"] {
        assert!(folder.path().join("deep/er").join(name).is_file(), "{name}");
    }
}

#[tokio::test]
async fn interrupted_creation_is_restarted() {
    let settings = SqliteSettings::default();
    for role in [Role::Records, Role::Content] {
        let folder = tempfile::tempdir().unwrap();
        let name = if role == Role::Records { "library.db" } else { "library-content.db" };
        // A partial database, its journal, an empty file, and the log of a deleted database.
        for (suffix, content) in [
            (".new", &b"SQLite format 3\0"[..]),
            (".new-journal", b"x"),
            ("", b""),
            ("-wal", b"x"),
            ("-journal", b"x"),
        ] {
            std::fs::write(folder.path().join(format!("{name}{suffix}")), content).unwrap();
        }
        for _ in 0..2 {
            let storage =
                enjambre_storage_sqlite::open(&settings, &Place::new(folder.path(), Tenancy::Single), role)
                    .await
                    .unwrap();
            let mut batch = Batch::new();
            batch.put(SPACE, Key::new(vec![1]).expect("1 byte"), vec![7; 500]);
            storage.commit(batch, Durability::Durable).await.unwrap();
            storage.close().await.unwrap();
        }
        assert!(!folder.path().join(format!("{name}.new")).exists());
    }
}

#[cfg(unix)]
#[tokio::test]
async fn socket_or_link_loop_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("library.db");
    // Neither a socket nor a link to itself is a database.
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    open(folder.path()).await.unwrap_err();
    std::os::unix::net::UnixStream::connect(&path).expect("the socket is still there");
    drop(socket);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    open(folder.path()).await.unwrap_err();
    assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
}
