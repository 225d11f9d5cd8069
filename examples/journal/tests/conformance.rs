//! Runs the storage conformance test suite on the journal, in both roles.

use std::sync::Arc;

use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use enjambre_journal::{JournalSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use tempfile::TempDir;

struct Journal(Role);

impl Builder for Journal {
    type Place = TempDir;

    fn place(&self) -> TempDir {
        TempDir::new().expect("temporary directory")
    }

    async fn open(&self, place: &TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        open(&JournalSettings::default(), &Place::new(place.path(), Tenancy::Single), self.0).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_passes_conformance_kit() {
    run_all(&Journal(Role::Records)).await;
    run_all(&Journal(Role::Content)).await;
}
