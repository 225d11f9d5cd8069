//! A storage that keeps everything in memory and appends each commit to a file.

mod engine;
mod record;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use enjambre_core::storage::embedded::{Embedded, EmbeddedSettings};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place::path_for;
use enjambre_core::storage::{Role, Storage};

/// The table `[storage.journal]` of the configuration.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalSettings {
    /// The file, relative to the data folder; where none is given, it is named after what it is for.
    pub path: Option<PathBuf>,
}

/// Opens the journal for a role, or makes it.
pub async fn open(path: &Path, role: Role) -> Result<Arc<dyn Storage>, StorageError> {
    let path = path_for(role, path);
    let adapter = EmbeddedSettings { name: "journal".to_owned(), ..EmbeddedSettings::default() };
    Ok(Arc::new(Embedded::open(adapter, move || engine::Journal::open(&path)).await?))
}
