//! The conformance test suite on etcd, in both roles.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use enjambre_storage_etcd::{EtcdSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use enjambre_tests::etcd::Server;

use crate::fixture::settings;

struct Etcd(Arc<Server>, Role, Tenancy);

impl Builder for Etcd {
    type Place = (EtcdSettings, tempfile::TempDir);

    fn place(&self) -> Self::Place {
        // On a busy machine the largest batch takes long.
        let settings = EtcdSettings { timeout: Duration::from_secs(60), ..settings(self.0.url()) };
        (settings, tempfile::tempdir().expect("a temporary folder"))
    }

    async fn open(&self, (settings, folder): &Self::Place) -> Result<Arc<dyn Storage>, StorageError> {
        open(settings, &Place::new(folder.path(), self.2), self.1).await
    }

    fn is_shared(&self, _place: &Self::Place) -> bool {
        self.2 == Tenancy::Shared
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_pass_the_conformance_kit() {
    let Some(server) = Server::shared("etcd conformance with records") else { return };
    run_all(&Etcd(server, Role::Records, Tenancy::Shared)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_passes_the_conformance_kit() {
    let Some(server) = Server::shared("etcd conformance with content") else { return };
    run_all(&Etcd(server, Role::Content, Tenancy::Single)).await;
}
