//! The conformance test suite on SQLite inside each layer and inside all layers.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::layers::observe::ObservedStorage;
use enjambre_core::storage::layers::retry::{Retry, RetryStorage};
use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use enjambre_storage_sqlite::{SqliteSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use tempfile::TempDir;

type Wrap = fn(Arc<dyn Storage>) -> Arc<dyn Storage>;

struct Wrapped(&'static [Wrap]);

impl Builder for Wrapped {
    type Place = TempDir;

    fn place(&self) -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    async fn open(&self, place: &TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        let opened =
            open(&SqliteSettings::default(), &Place::new(place.path(), Tenancy::Single), Role::Records)
                .await?;
        Ok(self.0.iter().fold(opened, |inner, wrap| wrap(inner)))
    }
}

const RETRY: Wrap = |inner| {
    let retry = Retry { timeout: Some(Duration::from_secs(60)), retries: 3 };
    Arc::new(RetryStorage::new(inner, retry))
};
const OBSERVE: Wrap = |inner| Arc::new(ObservedStorage::new(inner, "test"));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_pass_the_conformance_kit() {
    tokio::join!(
        run_all(&Wrapped(&[RETRY])),
        run_all(&Wrapped(&[OBSERVE])),
        run_all(&Wrapped(&[RETRY, OBSERVE])),
    );
}
