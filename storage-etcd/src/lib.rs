//! Storage on an etcd cluster, for several trackers on one cluster or a single node.
//!
//! A database consists of the keys with a prefix. A transaction is one etcd transaction, and all of them are durable. Reads are
//! linearizable.
//!
//! The messages of the etcd API are written by hand in the module `messages`, because the available client crates generate them
//! with `protoc`, which the build does not require otherwise.

mod client;
mod endpoint;
mod failure;
mod messages;
mod remote;
mod settings;

use std::sync::Arc;

use enjambre_core::storage::queued::{Queued, QueuedSettings};
use enjambre_core::{Place, Role, Storage, StorageError, runtime};

use client::Login;
use endpoint::endpoints;
use remote::Etcd;
pub use settings::EtcdSettings;

/// Opens the database for a role. Creates it if it does not exist.
pub async fn open(
    settings: &EtcdSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let remote = remote(settings, place, role).await?;
    let mut queued = QueuedSettings::default();
    (queued.timeout, queued.start_timeout) = (settings.timeout, settings.start_timeout);
    Ok(Arc::new(Queued::open(remote, place, role, queued).await?))
}

/// Removes all keys of a role.
pub async fn remove(settings: &EtcdSettings, place: &Place, role: Role) -> Result<(), StorageError> {
    remote(settings, place, role).await?.remove().await
}

/// Checks the endpoints, the prefix, the password and the certificates, without a connection. Blocks.
pub fn check(settings: &EtcdSettings, place: &Place) -> Result<(), StorageError> {
    Place::check_database_name(settings.prefix.as_deref())?;
    Login::new(settings, place)?;
    endpoints(settings, place).map(drop)
}

async fn remote(settings: &EtcdSettings, place: &Place, role: Role) -> Result<Etcd, StorageError> {
    let (settings, place) = (settings.clone(), place.clone());
    let prepared = runtime::spawn_blocking(move || {
        let name = place.database_name(settings.prefix.as_deref(), role)?;
        let endpoints = endpoints(&settings, &place)?;
        Ok(Etcd::new(&settings, &endpoints, Login::new(&settings, &place)?, &name))
    });
    prepared.await.unwrap_or_else(|error| Err(StorageError::backend("open", error)))
}
