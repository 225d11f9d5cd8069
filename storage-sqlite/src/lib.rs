//! Storage on SQLite: one database file for records, one beside it for content.
//!
//! Each space is a table. Records use 4 KiB pages and tables without row ids. Content uses 64 KiB pages and tables whose
//! last column is the value, so that a key lookup does not read content. Records use a write-ahead log
//! (<https://sqlite.org/wal.html>): readers continue during a commit. Content uses a rollback journal
//! (<https://sqlite.org/atomiccommit.html>), because a log would write everything twice.

mod checkpoint;
mod compact;
mod create;
mod error;
mod schema;
mod settings;
mod storage;

use std::sync::Arc;

use enjambre_core::storage::database_file;
use enjambre_core::{Embedded, EmbeddedSettings, Place, Role, Storage, StorageError};

pub use settings::SqliteSettings;
use storage::Sqlite;

/// Opens the database for a role. Creates it if it does not exist.
pub async fn open(
    settings: &SqliteSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let name = match role {
        Role::Records => "sqlite",
        Role::Content => "sqlite-content",
    };
    let mut adapter = EmbeddedSettings::new(name);
    adapter.readers = settings.readers.clamp(1, 64);
    adapter.group_bytes = storage::GROUP_BYTES;
    let options = options(settings, place, role, adapter.readers);
    Ok(Arc::new(
        Embedded::open(adapter, move || {
            database_file::open_on_full_disk(&options.path, storage::SPARE, || Sqlite::open(&options))
        })
        .await?,
    ))
}

/// Returns the space of deleted entries to the file system, and the number of its bytes. The database must be closed.
/// Blocks.
pub fn compact(settings: &SqliteSettings, place: &Place, role: Role) -> Result<u64, StorageError> {
    let options = options(settings, place, role, 1);
    database_file::open_on_full_disk(&options.path, storage::SPARE, || Sqlite::open(&options))?.compact()
}

fn options(settings: &SqliteSettings, place: &Place, role: Role, readers: usize) -> storage::Options {
    storage::Options {
        path: place.database(settings.path.as_deref(), "db", role),
        role,
        // The writer, its reader for conditions, and the reader threads.
        cache_kib: u64::from(settings.cache_mib.clamp(1, 4096)) * 1024 / (readers as u64 + 2),
    }
}
