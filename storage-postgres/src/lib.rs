//! Storage on PostgreSQL, for several trackers on one database or a single node.
//!
//! Each space is a table of one schema. The SQL uses tables, `ON CONFLICT`, `FOR UPDATE`, arrays and one window function, but no
//! stored functions, extensions or session locks. PostgreSQL-compatible distributed databases support it (not tested). The module
//! `transaction` describes atomicity and isolation of batches between processes, `lane` and `writer` the handling of connections
//! that fail during a commit.
//!
//! The client is `tokio-postgres`, which pipelines statements. `deadpool-postgres` is not used, because it has no timeout for
//! each server of the URL.

mod committer;
mod connection;
mod credentials;
mod error;
mod group;
mod lane;
mod schema;
mod server;
mod server_url;
mod settings;
mod storage;
mod transaction;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::model::time::human;
use enjambre_core::runtime;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::storage::database_file::{FileLock, create_parent_dir, lock, path_for};
use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use tokio::time::{Instant, sleep};

use connection::Connection;
use lane::Lane;
use schema::Schema;
use server::Servers;
pub use server_url::{InvalidUrl, ServerUrl};
pub use settings::{PostgresSettings, TlsMode};
use storage::Postgres;
use writer::Writer;

/// The delays between attempts to connect at the start.
const MIN_CONNECT_DELAY: Duration = Duration::from_millis(250);
const MAX_CONNECT_DELAY: Duration = Duration::from_secs(1);
/// The name of the lock file in the data directory, without its extension.
const LOCK: &str = "postgres";

/// The result of the blocking part of an opening.
struct Prepared {
    servers: Servers,
    schema: Schema,
    folder: Option<String>,
    lock: Option<FileLock>,
}

/// Opens the schema for a role. Creates it if it does not exist.
pub async fn open(
    settings: &PostgresSettings,
    place: &Place,
    role: Role,
) -> Result<Arc<dyn Storage>, StorageError> {
    let Prepared { servers, schema, folder, lock } = prepare(settings, place, role).await?;
    let (servers, schema) = (Arc::new(servers), Arc::new(schema));
    let connection = first_connection(&servers, &schema, settings.start_timeout).await?;
    let writer = Writer::new(&schema, folder);
    writer.register(&connection, &schema, settings.timeout).await?;
    let lane = Lane::new(servers.clone(), schema.clone(), writer, Some(connection));
    Ok(Arc::new(Postgres::start(servers, schema, settings.connections, lane, lock)?))
}

/// Connects and prepares the schema. Waits for an unreachable server, so that nodes and servers can be started in any order.
async fn first_connection(
    servers: &Servers,
    schema: &Schema,
    start_timeout: Duration,
) -> Result<Connection, StorageError> {
    let deadline = Instant::now() + start_timeout;
    let mut backoff = Backoff::new(MIN_CONNECT_DELAY, MAX_CONNECT_DELAY);
    let mut is_logged = false;
    loop {
        let delay = backoff.next_jittered();
        let prepared = async {
            let connection = servers.connect().await?;
            schema.prepare(&connection).await?;
            Ok(connection)
        };
        let error = match prepared.await {
            Err(error @ StorageError::Unavailable { .. }) if Instant::now() + delay < deadline => error,
            prepared => return prepared,
        };
        if !is_logged {
            is_logged = true;
            tracing::warn!(%error, database = servers.description, timeout = %human(start_timeout), "waiting for the database");
        }
        sleep(delay).await;
    }
}

/// Removes the schema of a role with all its tables. Refuses a schema that does not belong to Enjambre.
pub async fn remove(settings: &PostgresSettings, place: &Place, role: Role) -> Result<(), StorageError> {
    let prepared = prepare(settings, place, role).await?;
    schema::remove(&prepared.servers.connect().await?, &prepared.schema).await
}

async fn prepare(settings: &PostgresSettings, place: &Place, role: Role) -> Result<Prepared, StorageError> {
    let (settings, place) = (settings.clone(), place.clone());
    let prepared = runtime::spawn_blocking(move || prepare_blocking(&settings, &place, role)).await;
    prepared.unwrap_or_else(|error| Err(StorageError::backend("open", error)))
}

/// Checks the name of the schema, the password and the certificates, without a connection. Blocks.
pub fn check(settings: &PostgresSettings, place: &Place) -> Result<(), StorageError> {
    schema_name(settings, place)?;
    Servers::new(settings, place).map(drop)
}

/// Returns the name of the schema of the catalogue or the index.
fn schema_name(settings: &PostgresSettings, place: &Place) -> Result<String, StorageError> {
    let configured = || settings.schema.clone();
    // A scratch place has a schema of its own.
    let scratch = place.scratch.as_ref().map(|scratch| scratch.name().to_owned());
    let name = scratch.or_else(configured).unwrap_or_else(|| match place.tenancy {
        Tenancy::Shared | Tenancy::PerFolder => "enjambre_catalogue".to_owned(),
        Tenancy::Single => "enjambre_library".to_owned(),
    });
    if !schema::is_valid_name(&name) {
        return Err(StorageError::backend(
            format!("use the schema {name:?}"),
            "invalid name; use 1 to 32 lower-case letters, digits and underscores, starting with a letter and not with pg_",
        ));
    }
    Ok(name)
}

fn prepare_blocking(
    settings: &PostgresSettings,
    place: &Place,
    role: Role,
) -> Result<Prepared, StorageError> {
    let mut name = schema_name(settings, place)?;
    let servers = Servers::new(settings, place)?;
    let (mut folder, mut lock_file) = (None, None);
    if place.tenancy != Tenancy::Shared {
        let path = place.data_dir.join(LOCK);
        create_parent_dir(&path)?;
        lock_file = Some(lock(&path_for(role, &path))?);
        let id = writer::folder_id(&place.data_dir)?;
        if place.tenancy == Tenancy::PerFolder {
            name = format!("{name}_store_{}", id.get(..8).unwrap_or_default());
        }
        folder = Some(id);
    }
    if role == Role::Content {
        name.push_str("_content");
    }
    let schema = Schema::new(name, role, &servers.description);
    Ok(Prepared { servers, schema, folder, lock: lock_file })
}
