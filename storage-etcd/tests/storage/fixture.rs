//! Settings and batches that the tests share.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use enjambre_core::{Batch, Key, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_storage_etcd::{EtcdSettings, open};

pub(crate) const A: Space = Space::new("a");

/// The settings for a new prefix.
pub(crate) fn settings(url: String) -> EtcdSettings {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    EtcdSettings { endpoints: vec![url], prefix: Some(prefix), ..EtcdSettings::default() }
}

/// Opens a shared database.
pub(crate) async fn open_shared(settings: &EtcdSettings) -> Result<Arc<dyn Storage>, StorageError> {
    open(settings, &Place::new(Path::new("/nonexistent"), Tenancy::Shared), Role::Records).await
}

pub(crate) fn key(number: u32) -> Key {
    Key::new(number.to_be_bytes().to_vec()).unwrap()
}

/// Returns a batch that conflicts if it is applied twice.
pub(crate) fn insert(number: u32, value: Vec<u8>) -> Batch {
    let mut batch = Batch::new();
    batch.require_absent(A, key(number)).put(A, key(number), value);
    batch
}

pub(crate) fn is_unavailable<T>(outcome: &Result<T, StorageError>) -> bool {
    matches!(outcome, Err(StorageError::Unavailable { .. }))
}

/// The text of an error and its causes.
pub(crate) fn text(error: &StorageError) -> String {
    enjambre_core::storage::inspect::with_causes(error)
}
