//! Storage on SQLite: one database file for records, one beside it for content.
//!
//! Each space is a table. Records lie in 4 KiB pages and tables without row ids; content lies in 64 KiB pages
//! and tables whose last column is the value, so that a key is found without passing over content. Records have a
//! write-ahead log (<https://sqlite.org/wal.html>): readers go on while a commit is written. Content has a rollback
//! journal (<https://sqlite.org/atomiccommit.html>), because a log would write everything twice.

mod create;
mod error;
mod schema;
mod settings;
mod storage;

use std::path::Path;
use std::sync::Arc;

use enjambre_core::storage::embedded::{Embedded, EmbeddedSettings};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place::path_for;
use enjambre_core::storage::{Role, Storage};

pub use settings::SqliteSettings;
use storage::Sqlite;

/// Opens the database for a role, or makes it. A relative path begins at `base`, the data directory.
pub async fn open(
    settings: &SqliteSettings,
    base: &Path,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let path = path_for(role, &base.join(&settings.path));
    let name = match role {
        Role::Records => "sqlite",
        Role::Content => "sqlite-content",
    };
    let adapter = EmbeddedSettings {
        name: name.to_owned(),
        readers: settings.readers.clamp(1, 64),
        group_bytes: storage::GROUP_BYTES,
        ..EmbeddedSettings::default()
    };
    let options = storage::Options {
        path,
        role,
        // The writer, its reader for conditions, and the reader threads.
        cache_kib: u64::from(settings.cache_mib.clamp(1, 4096)) * 1024 / (adapter.readers as u64 + 2),
    };
    Ok(Arc::new(Embedded::open(adapter, move || Sqlite::open(&options)).await?))
}
