//! Storage on PostgreSQL, for several trackers on one database or a single node.
//!
//! A database is a schema with one table for each space. The SQL needs no stored functions, extensions or session locks, so
//! PostgreSQL-compatible distributed databases support it (not tested).
//!
//! The client is `tokio-postgres`, which pipelines statements. `deadpool-postgres` is not used, because it has no timeout for
//! each server of the URL.

mod connection;
mod error;
mod remote;
mod schema;
mod server;
mod server_url;
mod settings;
mod tls;
mod transaction;

use std::sync::Arc;

use enjambre_core::storage::queued::{Queued, QueuedSettings};
use enjambre_core::{Place, Role, Storage, StorageError, runtime};

use remote::Postgres;
use schema::Schema;
use server::Servers;
pub use server_url::{InvalidUrl, ServerUrl};
pub use settings::{PostgresSettings, TlsMode};

/// Opens the schema for a role. Creates it if it does not exist.
pub async fn open(
    settings: &PostgresSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let remote = client(settings, place, role).await?;
    let mut queued = QueuedSettings::default();
    (queued.timeout, queued.start_timeout) = (settings.timeout, settings.start_timeout);
    Ok(Arc::new(Queued::open(remote, place, role, queued).await?))
}

/// Removes the schema of a role with all its tables. Refuses a schema that does not belong to Enjambre.
pub async fn remove(settings: &PostgresSettings, place: &Place, role: Role) -> Result<(), StorageError> {
    client(settings, place, role).await?.remove().await
}

/// Checks the name of the schema, the password and the certificates, without a connection. Blocks.
pub fn check(settings: &PostgresSettings, place: &Place) -> Result<(), StorageError> {
    Place::check_database_name(settings.schema.as_deref())?;
    Servers::new(settings, place).map(drop)
}

async fn client(settings: &PostgresSettings, place: &Place, role: Role) -> Result<Postgres, StorageError> {
    let (settings, place) = (settings.clone(), place.clone());
    let prepared = runtime::spawn_blocking(move || {
        let servers = Servers::new(&settings, &place)?;
        let name = place.database_name(settings.schema.as_deref(), role)?;
        let schema = Schema::new(name, role, &servers.description);
        Postgres::new(servers, schema, settings.connections)
    });
    prepared.await.unwrap_or_else(|error| Err(StorageError::backend("open", error)))
}
