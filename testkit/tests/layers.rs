//! The storage conformance test suite with each storage layer.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::layers::observe::ObservedStorage;
use enjambre_core::storage::layers::retry::{Retry, RetryStorage};
use enjambre_core::storage::memory::Disk;
use enjambre_core::{Storage, StorageError};
use enjambre_testkit::storage::{Builder, run_all};

struct Layered(fn(Arc<dyn Storage>) -> Arc<dyn Storage>);

impl Builder for Layered {
    type Place = Disk;

    fn place(&self) -> Disk {
        Disk::new()
    }

    async fn open(&self, place: &Disk) -> Result<Arc<dyn Storage>, StorageError> {
        Ok((self.0)(Arc::new(place.open())))
    }
}

#[tokio::test]
async fn observed_storage_conforms() {
    run_all(&Layered(|inner| Arc::new(ObservedStorage::new(inner, "test")))).await;
}

#[tokio::test]
async fn retry_storage_conforms() {
    run_all(&Layered(|inner| {
        let settings = Retry { timeout: Some(Duration::from_secs(60)), retries: 3 };
        Arc::new(RetryStorage::new(inner, settings))
    }))
    .await;
}
