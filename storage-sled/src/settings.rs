//! The section `[storage.sled]` of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The settings of the sled storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SledSettings {
    /// The database directory, relative to the data directory. Content is stored in a second directory with the suffix
    /// `-content`: `catalogue.sled` and `catalogue-content.sled`.
    pub path: Option<PathBuf>,
    /// The page cache of each database in MiB. It is a hint: under load, sled uses several times as much.
    pub cache_mib: u32,
    /// The number of reader threads of each database.
    pub readers: usize,
}

impl Default for SledSettings {
    fn default() -> Self {
        Self { path: None, cache_mib: 16, readers: 2 }
    }
}
