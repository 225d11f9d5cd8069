//! The conformance test suite on SQLite, in both roles.

use std::sync::Arc;

use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use enjambre_storage_sqlite::{SqliteSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use tempfile::TempDir;

struct Sqlite(Role);

impl Builder for Sqlite {
    type Place = TempDir;

    fn place(&self) -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    async fn open(&self, place: &TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        open(&SqliteSettings::default(), &Place::new(place.path(), Tenancy::Single), self.0).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_passes_the_conformance_kit() {
    run_all(&Sqlite(Role::Records)).await;
    run_all(&Sqlite(Role::Content)).await;
}
