//! The section `[storage.sqlite]` of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The settings of the SQLite storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqliteSettings {
    /// The database file, relative to the data directory. Content is stored in a second file with the suffix
    /// `-content`: `catalogue.db` and `catalogue-content.db`.
    pub path: Option<PathBuf>,
    /// The page cache of each database file in MiB, divided among its connections.
    pub cache_mib: u32,
    /// The number of reader threads of each database file.
    pub readers: usize,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        Self { path: None, cache_mib: 8, readers: 2 }
    }
}
