//! The table `[storage.sqlite]` of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The settings of the SQLite storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqliteSettings {
    /// The database file, relative to the data directory. Content goes into a file of its own beside it, with
    /// `-content` behind the name: `catalogue.db` and `catalogue-content.db`.
    pub path: PathBuf,
    /// The page cache of each database file in MiB, shared out among its connections.
    pub cache_mib: u32,
    /// How many threads read each database file.
    pub readers: usize,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        Self { path: "enjambre.db".into(), cache_mib: 8, readers: 2 }
    }
}
