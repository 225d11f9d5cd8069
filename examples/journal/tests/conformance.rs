//! The journal keeps the obligations of a storage, in both of its roles.

use std::sync::Arc;

use enjambre_core::storage::conformance::{Builder, run_all};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::{Role, Storage};
use enjambre_journal::open;
use tempfile::TempDir;

struct Journal(Role);

impl Builder for Journal {
    type Place = TempDir;

    fn place(&self) -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    async fn open(&self, place: &TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        open(&place.path().join("test.journal"), self.0).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_its_obligations() {
    run_all(&Journal(Role::Records)).await;
    run_all(&Journal(Role::Content)).await;
}
