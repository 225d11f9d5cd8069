//! A storage backend on redb: one database file for records and one for content.

mod storage;

use std::path::PathBuf;
use std::sync::Arc;

use enjambre_core::{Embedded, EmbeddedSettings, Place, Role, Storage, StorageError};
use serde::{Deserialize, Serialize};

/// The table `[storage.redb]` of the configuration.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedbSettings {
    /// The path of the database file, relative to the data directory. The default depends on the node: `catalogue.redb` or
    /// `library.redb`.
    pub path: Option<PathBuf>,
    /// The size of the page cache of each database, in MiB.
    pub cache_mib: u32,
    /// The number of reader threads of each database.
    pub readers: usize,
    /// Whether to read and verify the whole file at each start. By default redb trusts a file that was closed cleanly.
    pub check: bool,
}

impl Default for RedbSettings {
    fn default() -> Self {
        Self { path: None, cache_mib: 16, readers: 2, check: false }
    }
}

/// Opens the database of a place for a role. Creates the file if it does not exist.
pub async fn open(
    settings: RedbSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let path = place.database(settings.path.as_deref(), "redb", role);
    let mut adapter = EmbeddedSettings::new("redb");
    adapter.readers = settings.readers;
    Ok(Arc::new(Embedded::open(adapter, move || storage::Redb::open(&path, role, &settings)).await?))
}
