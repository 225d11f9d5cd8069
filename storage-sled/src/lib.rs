//! Storage on sled 0.34: one database directory for records, one beside it for content.
//!
//! All spaces share one tree, because a batch of sled is atomic within a tree: the key of an entry is the name of
//! its space, a zero byte, and its key. sled alone does not bear a power cut; the engine here syncs its file
//! behind each flush that is meant to be durable, and keeps values below the size at which sled would write
//! files that it never syncs.

mod error;
mod files;
mod format;
mod settings;
mod storage;

use std::sync::Arc;

use enjambre_core::storage::database_file;
use enjambre_core::{Embedded, EmbeddedSettings, Place, Role, Storage, StorageError};

pub use settings::SledSettings;
use storage::{Options, Sled};

/// Opens the database for a role. Creates it if it does not exist.
pub async fn open(
    settings: &SledSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let name = match role {
        Role::Records => "sled",
        Role::Content => "sled-content",
    };
    let mut adapter = EmbeddedSettings::new(name);
    adapter.readers = settings.readers.clamp(1, 64);
    adapter.group_bytes = storage::GROUP_BYTES;
    adapter.close_timeout = storage::CLOSE_TIMEOUT * 2;
    let options = Options {
        path: place.database(settings.path.as_deref(), "sled", role),
        role,
        cache_bytes: u64::from(settings.cache_mib.clamp(1, 4096)) * 1024 * 1024,
    };
    Ok(Arc::new(
        Embedded::open(adapter, move || {
            database_file::open_on_full_disk(&options.path, storage::SPARE, || Sled::open(&options))
        })
        .await?,
    ))
}
