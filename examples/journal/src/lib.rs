//! A storage backend that keeps all entries in memory and appends each commit to a file.

mod engine;
mod record;

use std::path::PathBuf;
use std::sync::Arc;

use enjambre_core::{Embedded, EmbeddedSettings, Place, Role, Storage, StorageError};

/// The table `[storage.journal]` of the configuration.
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalSettings {
    /// The path of the file, relative to the data directory. The default depends on the node: `catalogue.journal` or
    /// `library.journal`.
    pub path: Option<PathBuf>,
}

/// Opens the journal of a place for a role. Creates the file if it does not exist.
pub async fn open(
    settings: &JournalSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let path = place.database(settings.path.as_deref(), "journal", role);
    let adapter = EmbeddedSettings::new("journal");
    Ok(Arc::new(Embedded::open(adapter, move || engine::Journal::open(&path)).await?))
}
