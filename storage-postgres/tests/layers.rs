//! The wrappers keep the obligations of a storage around PostgreSQL: several trackers in one database, each with a
//! prefix, with patience for a server behind a network.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use enjambre_core::catalogue::several::{Ways, run_all as run_trackers};
use enjambre_core::storage::conformance::{Builder, run_all};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::layers::patience::{Patience, PatientStorage};
use enjambre_core::storage::layers::prefix::PrefixedStorage;
use enjambre_core::storage::{Role, Storage};
use enjambre_storage_postgres::{PostgresSettings, Tenancy, open};
use enjambre_tests::postgres::{Server, fresh_schema};
use enjambre_tests::wait::LONG;

struct Wrapped(Arc<Server>);

impl Builder for Wrapped {
    type Place = (String, tempfile::TempDir);

    fn place(&self) -> Self::Place {
        (fresh_schema(), tempfile::tempdir().expect("a temporary folder"))
    }

    async fn open(&self, (schema, folder): &Self::Place) -> Result<Arc<dyn Storage>, StorageError> {
        let settings = PostgresSettings {
            url: self.0.url().try_into().expect("a URL"),
            schema: Some(schema.clone()),
            connect_timeout: LONG,
            ..PostgresSettings::default()
        };
        let opened = open(&settings, folder.path(), Role::Records, Tenancy::Shared).await?;
        let prefixed = PrefixedStorage::new(opened, "north".parse().expect("a prefix"));
        let patience = Patience { timeout: Some(Duration::from_secs(60)), retries: 3 };
        Ok(Arc::new(PatientStorage::new(Arc::new(prefixed), patience)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_keep_the_obligations() {
    let Some(server) = Server::shared("the wrappers around PostgreSQL") else { return };
    run_all(&Wrapped(server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trackers_with_different_prefixes_in_one_schema_do_not_meet() {
    let Some(server) = Server::shared("prefixes in one PostgreSQL schema") else { return };
    let settings = PostgresSettings {
        url: server.url().try_into().expect("a URL"),
        schema: Some(fresh_schema()),
        connect_timeout: LONG,
        connections: 2,
        ..PostgresSettings::default()
    };
    let number = AtomicU32::new(0);
    // Each case is to find an empty catalogue, in the schema in which all of them are.
    let fresh = async |place: &str| -> Ways {
        let prefix = format!("{place}{}", number.fetch_add(1, Ordering::Relaxed));
        let way = async || {
            let opened = open(&settings, Path::new("/"), Role::Records, Tenancy::Shared).await;
            let prefix = prefix.parse().expect("a prefix");
            let way: Arc<dyn Storage> = Arc::new(PrefixedStorage::new(opened.expect("it opens"), prefix));
            way
        };
        [way().await, way().await, way().await]
    };
    tokio::join!(run_trackers(async || fresh("north").await), run_trackers(async || fresh("south").await));
    let schema = settings.schema.as_deref().expect("it is set");
    let tables = server.sql(&format!(
        "SELECT table_name FROM information_schema.tables \
         WHERE table_schema = '{schema}' AND table_name LIKE 'space%'"
    ));
    let theirs = |table: &str| table.starts_with("space_north") || table.starts_with("space_south");
    assert!(!tables.trim().is_empty() && tables.lines().all(theirs), "{tables}");
}
