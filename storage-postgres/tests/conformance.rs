//! PostgreSQL keeps the obligations of a storage, in both of its roles.

use std::{sync::Arc, time::Duration};

use enjambre_core::storage::conformance::{Builder, run_all};
use enjambre_core::storage::{Role, Storage, error::StorageError};
use enjambre_storage_postgres::{PostgresSettings, Tenancy, open};
use enjambre_tests::postgres::{Server, fresh_schema};

struct Postgres(Arc<Server>, Role, Tenancy);

impl Builder for Postgres {
    type Place = (String, tempfile::TempDir);
    fn place(&self) -> Self::Place {
        (fresh_schema(), tempfile::tempdir().expect("a temporary folder"))
    }
    async fn open(&self, (schema, folder): &Self::Place) -> Result<Arc<dyn Storage>, StorageError> {
        let (url, connect_timeout) = (self.0.url().try_into().expect("a URL"), Duration::from_secs(60));
        let schema = Some(schema.clone());
        let settings = PostgresSettings { url, schema, connect_timeout, ..PostgresSettings::default() };
        open(&settings, folder.path(), self.1, self.2).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_its_obligations() {
    let Some(server) = Server::shared("the conformance of PostgreSQL") else { return };
    run_all(&Postgres(server.clone(), Role::Records, Tenancy::Shared)).await;
    run_all(&Postgres(server, Role::Content, Tenancy::Single)).await;
}
