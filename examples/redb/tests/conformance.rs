//! Runs the storage conformance test suite on redb, in both roles.

use std::sync::Arc;

use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use enjambre_redb::{RedbSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use tempfile::TempDir;

struct Redb(Role);

impl Builder for Redb {
    type Place = TempDir;

    fn place(&self) -> TempDir {
        TempDir::new().expect("temporary directory")
    }

    async fn open(&self, place: &TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        open(RedbSettings::default(), &Place::new(place.path(), Tenancy::Single), self.0).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redb_passes_conformance_kit() {
    run_all(&Redb(Role::Records)).await;
    run_all(&Redb(Role::Content)).await;
}
