//! Storage on redb: one database file for records, one beside it for content.

mod storage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use enjambre_core::storage::embedded::{Embedded, EmbeddedSettings};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place::path_for;
use enjambre_core::storage::{Role, Storage};
use serde::Deserialize;

/// The table `[storage.redb]` of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedbSettings {
    /// The database file, relative to the data folder; where none is given, it is named after what it is for.
    pub path: Option<PathBuf>,
    /// The page cache of each database in MiB.
    pub cache_mib: u32,
    /// How many threads read each database.
    pub readers: usize,
    /// Whether the whole file is read and checked at each start. Else redb trusts one that was closed in order.
    pub check: bool,
}

impl Default for RedbSettings {
    fn default() -> Self {
        Self { path: None, cache_mib: 16, readers: 2, check: false }
    }
}

/// Opens the database for a role, or makes it. Content lies beside `path`, with `-content` before the extension.
pub async fn open(settings: RedbSettings, path: &Path, role: Role) -> Result<Arc<dyn Storage>, StorageError> {
    let adapter = EmbeddedSettings { name: "redb".into(), readers: settings.readers, ..Default::default() };
    let path = path_for(role, path);
    Ok(Arc::new(Embedded::open(adapter, move || storage::Redb::open(&path, role, &settings)).await?))
}
