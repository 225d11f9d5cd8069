//! A storage backend on a Redis server.

mod remote;

use std::sync::Arc;

use enjambre_core::{Place, Queued, QueuedSettings, Role, Storage, StorageError};
use serde::{Deserialize, Serialize};

/// The table `[storage.redis]` of the configuration.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// The server, for example `redis://127.0.0.1:6379`.
    pub url: String,
    /// The name of the database: the keys at the server start with it. The default depends on the node:
    /// `enjambre_catalogue` or `enjambre_library`.
    pub name: Option<String>,
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self { url: "redis://127.0.0.1:6379".to_owned(), name: None }
    }
}

/// Opens the database of a place for a role.
pub async fn open(
    settings: &RedisSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let name = place.database_name(settings.name.as_deref(), role)?;
    let remote = remote::Redis::new(&settings.url, name)?;
    Ok(Arc::new(Queued::open(remote, place, role, QueuedSettings::default()).await?))
}

/// Removes the database of a place for a role.
pub async fn remove(settings: &RedisSettings, place: &Place, role: Role) -> Result<(), StorageError> {
    let name = place.database_name(settings.name.as_deref(), role)?;
    remote::Redis::new(&settings.url, name)?.remove().await
}
