//! The table `[storage.sled]` of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The settings of the sled storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SledSettings {
    /// The database folder, relative to the data directory. Content goes into a folder of its own beside it, with
    /// `-content` behind the name: `catalogue.sled` and `catalogue-content.sled`.
    pub path: PathBuf,
    /// The page cache of each database in MiB. sled takes it as a hint; under load it uses several times as much.
    pub cache_mib: u32,
    /// How many threads read each database.
    pub readers: usize,
}

impl Default for SledSettings {
    fn default() -> Self {
        Self { path: "enjambre.sled".into(), cache_mib: 16, readers: 2 }
    }
}
