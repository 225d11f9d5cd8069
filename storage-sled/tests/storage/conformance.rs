//! The conformance test suite on sled, in both roles.

use std::sync::Arc;

use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use enjambre_storage_sled::{SledSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use tempfile::TempDir;

struct Sled(Role);

impl Builder for Sled {
    type Place = TempDir;

    fn place(&self) -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    async fn open(&self, place: &TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        open(&SledSettings::default(), &Place::new(place.path(), Tenancy::Single), self.0).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_passes_the_conformance_kit() {
    run_all(&Sled(Role::Records)).await;
    run_all(&Sled(Role::Content)).await;
}
