//! The wrappers keep the obligations of a storage around SQLite, one by one and one around the other.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::conformance::{Builder, run_all};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::layers::metrics::MeteredStorage;
use enjambre_core::storage::layers::patience::{Patience, PatientStorage};
use enjambre_core::storage::layers::prefix::PrefixedStorage;
use enjambre_core::storage::{Role, Storage};
use enjambre_storage_sqlite::{SqliteSettings, open};
use tempfile::TempDir;

type Wrap = fn(Arc<dyn Storage>) -> Arc<dyn Storage>;

struct Wrapped(&'static [Wrap]);

impl Builder for Wrapped {
    type Place = TempDir;

    fn place(&self) -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    async fn open(&self, place: &TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        let opened = open(&SqliteSettings::default(), place.path(), Role::Records).await?;
        Ok(self.0.iter().fold(opened, |inner, wrap| wrap(inner)))
    }
}

const PREFIX: Wrap = |inner| Arc::new(PrefixedStorage::new(inner, "north".parse().expect("a prefix")));
const PATIENCE: Wrap = |inner| {
    let patience = Patience { timeout: Some(Duration::from_secs(60)), retries: 3 };
    Arc::new(PatientStorage::new(inner, patience))
};
const METRICS: Wrap = |inner| Arc::new(MeteredStorage::new(inner, "test"));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_keep_the_obligations() {
    tokio::join!(
        run_all(&Wrapped(&[PREFIX])),
        run_all(&Wrapped(&[PATIENCE])),
        run_all(&Wrapped(&[METRICS])),
        run_all(&Wrapped(&[PREFIX, PATIENCE, METRICS])),
    );
}
