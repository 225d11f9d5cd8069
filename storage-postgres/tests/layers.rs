//! The wrappers keep the obligations of a storage around PostgreSQL: several trackers in one database, each with a
//! prefix, with patience for a server behind a network.

use std::sync::Arc;
use std::time::Duration;

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
