//! Storage on PostgreSQL: for several trackers on one database, and for whoever has a server anyway.
//!
//! The client is `tokio-postgres`: well kept, asynchronous throughout, able to send statements without waiting for the
//! answers to those before, and small. `sqlx` would bring macros, a layer over several databases and an own way to
//! pool; `deadpool` only pools. Its companion `deadpool-postgres` is left out, because each of several servers is to have a
//! deadline of its own until its connection is ready.
//!
//! Each space is a table of one schema. The SQL is plain: tables, `ON CONFLICT`, `FOR UPDATE`, arrays, one window
//! function. PostgreSQL-compatible distributed databases know all of it (untested there), and no function, extension or lock of a
//! session is needed at the server. How batches keep their promises with several processes at once is told in
//! `transaction`; what becomes of a commit in whose middle the connection breaks, in `lane` and `writer`.

mod committer;
mod connection;
mod error;
mod group;
mod lane;
mod request;
mod schema;
mod server;
mod settings;
mod storage;
mod transaction;
mod writer;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place::{lock, path_for};
use enjambre_core::storage::{Role, Storage};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, sleep};

use committer::Committer;
use connection::Connection;
use lane::Lane;
use schema::Schema;
use server::Servers;
pub use settings::{InvalidUrl, PostgresSettings, ServerUrl, TlsMode};
use storage::Postgres;
use writer::Writer;

/// The pause between two looks for a server that is away.
const PAUSE: Duration = Duration::from_millis(500);
/// The file in the data folder beside which the lock lies.
const LOCK: &str = "postgres";

/// Who uses a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenancy {
    /// Any number of processes at once: the catalogue of trackers that are one tracker.
    Shared,
    /// One process at a time: the library of a peer.
    Single,
    /// One process at a time, each data folder in a schema of its own: what a tracker keeps beside a shared catalogue.
    /// `_store_` and the beginning of the folder's id are put behind the name of the schema.
    PerFolder,
}

/// What is read from files before there is a connection.
struct Prepared {
    servers: Servers,
    schema: Schema,
    folder: Option<String>,
    lock: Option<File>,
}

/// Opens the schema for a role, or makes it. Relative paths begin at `base`, the data folder.
pub async fn open(
    settings: &PostgresSettings,
    base: &Path,
    role: Role,
    tenancy: Tenancy,
) -> Result<Arc<dyn Storage>, StorageError> {
    let prepared = {
        let (settings, base) = (settings.clone(), base.to_owned());
        blocking(move || prepare(&settings, &base, role, tenancy)).await?
    };
    let Prepared { servers, schema, folder, lock } = prepared;
    let (servers, schema) = (Arc::new(servers), Arc::new(schema));
    let connection = first_connection(&servers, &schema, settings.start_timeout).await?;
    let writer = Writer::new(&schema, folder);
    writer.sign_on(&connection, &schema, servers.patience).await?;
    let pool = storage::pool(servers.clone(), settings.connections)?;
    let patience = servers.patience;
    let lane = Lane::new(servers, schema.clone(), writer, Some(connection));
    let (requests, received) = unbounded_channel();
    let ended = Committer::start(lane, received, lock);
    Ok(Arc::new(Postgres::new(pool, schema, patience, requests, ended)))
}

/// A connection to tables that are there. A server that is away is waited for: whoever starts everything at once, or after
/// a power cut, need not keep an order.
async fn first_connection(
    servers: &Servers,
    schema: &Schema,
    patience: Duration,
) -> Result<Connection, StorageError> {
    let until = Instant::now() + patience;
    let mut told = false;
    loop {
        let prepared = async {
            let connection = servers.connect().await?;
            schema.prepare(&connection).await?;
            Ok(connection)
        };
        let error = match prepared.await {
            Err(error @ StorageError::Unavailable { .. }) if Instant::now() + PAUSE < until => error,
            prepared => return prepared,
        };
        if !told {
            told = true;
            tracing::warn!(%error, database = servers.name, "waiting for the database for up to {patience:?}");
        }
        sleep(PAUSE).await;
    }
}

/// Removes what [`open`] made at the server for a role: the schema with everything in it. One that is not Enjambre's is
/// left alone and refused.
pub async fn remove(
    settings: &PostgresSettings,
    base: &Path,
    role: Role,
    tenancy: Tenancy,
) -> Result<(), StorageError> {
    let prepared = {
        let (settings, base) = (settings.clone(), base.to_owned());
        blocking(move || prepare(&settings, &base, role, tenancy)).await?
    };
    schema::remove(&prepared.servers.connect().await?, &prepared.schema).await
}

fn prepare(
    settings: &PostgresSettings,
    base: &Path,
    role: Role,
    tenancy: Tenancy,
) -> Result<Prepared, StorageError> {
    let mut name = settings.schema.clone().unwrap_or_else(|| match tenancy {
        Tenancy::Shared | Tenancy::PerFolder => "enjambre_catalogue".to_owned(),
        Tenancy::Single => "enjambre_library".to_owned(),
    });
    if !schema::is_name(&name) {
        return Err(StorageError::backend(
            format!("use the schema {name:?}"),
            "its name has 1 to 32 lower-case letters, digits and underscores, a letter first, and does not begin with pg_",
        ));
    }
    let servers = Servers::new(settings, base)?;
    let (mut folder, mut held) = (None, None);
    if tenancy != Tenancy::Shared {
        std::fs::create_dir_all(base)
            .map_err(|error| StorageError::backend(format!("make the folder {}", base.display()), error))?;
        // Before the id, so that only one process makes one.
        held = Some(lock(&path_for(role, &base.join(LOCK)))?);
        let id = writer::folder_id(base)?;
        if tenancy == Tenancy::PerFolder {
            name = format!("{name}_store_{}", id.get(..8).unwrap_or_default());
        }
        folder = Some(id);
    }
    if role == Role::Content {
        name.push_str("_content");
    }
    let schema = Schema::new(name, role, &servers.name);
    Ok(Prepared { servers, schema, folder, lock: held })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| Err(StorageError::backend("open", error)))
}
