//! Settings and batches that the tests share.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::{Batch, Key, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_storage_postgres::{PostgresSettings, open};
use enjambre_tests::postgres::fresh_schema;
use enjambre_tests::wait::TIMEOUT;
use tokio::time::{sleep, timeout};

pub(crate) const A: Space = Space::new("a");
/// The delay between the attempts of a retry loop.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// The settings for a new schema.
pub(crate) fn settings(url: &str) -> PostgresSettings {
    PostgresSettings {
        url: url.to_owned().try_into().unwrap(),
        connect_timeout: TIMEOUT,
        schema: Some(fresh_schema()),
        connections: 4,
        ..PostgresSettings::default()
    }
}

/// The place of a shared catalogue. It needs no data directory.
pub(crate) fn shared_place() -> Place {
    Place::new(Path::new("/nonexistent"), Tenancy::Shared)
}

/// Opens a shared schema.
pub(crate) async fn open_shared(settings: &PostgresSettings) -> Result<Arc<dyn Storage>, StorageError> {
    open(settings, &shared_place(), Role::Records).await
}

pub(crate) fn key(number: u32) -> Key {
    Key::new(number.to_be_bytes().to_vec()).unwrap()
}

/// Returns a batch that conflicts if it is applied twice.
pub(crate) fn insert(number: u32) -> Batch {
    let mut batch = Batch::new();
    batch.require_absent(A, key(number)).put(A, key(number), number.to_be_bytes().to_vec());
    batch
}

/// Returns whether the batch of [`insert`] is applied. Waits until the storage is available.
pub(crate) async fn is_inserted(storage: &dyn Storage, number: u32) -> bool {
    let read = timeout(TIMEOUT, async {
        loop {
            match storage.get(A, &[key(number)]).await {
                Ok(values) => return values[0].is_some(),
                Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error}"),
            }
            sleep(POLL).await;
        }
    });
    read.await.expect("the storage recovers")
}
