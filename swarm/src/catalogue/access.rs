//! Access to the storage that all parts of the catalogue share.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::layout;
use enjambre_core::model::time::human;
use enjambre_core::{Batch, Key, KeyRange, Space, Storage, StorageError};

/// The number of attempts of a conditional commit that conflicts with other writers.
pub(super) const ATTEMPTS: usize = 100;
/// The entries of one page of a scan over many.
pub(super) const PAGE: usize = 500;
/// The longest wait of a request for its turn, and of a new entry for a block of numbers. Well below the time limit of the
/// requests of clients, so that the error reply arrives.
pub(crate) const TURN_TIMEOUT: Duration = Duration::from_secs(4);

pub(super) async fn read_all<const N: usize>(
    storage: &dyn Storage,
    space: Space,
    keys: &[Key; N],
) -> Result<[Option<Bytes>; N], StorageError> {
    let values = storage.get(space, keys).await?;
    let wrong_count = |_| StorageError::corrupt("the storage returned a wrong number of values");
    values.try_into().map_err(wrong_count)
}

pub(super) async fn read(
    storage: &dyn Storage,
    space: Space,
    key: &Key,
) -> Result<Option<Bytes>, StorageError> {
    let [value] = read_all(storage, space, std::array::from_ref(key)).await?;
    Ok(value)
}

/// Requires that the key still has the value that was read.
pub(super) fn require_same(batch: &mut Batch, space: Space, key: Key, read: Option<Bytes>) {
    match read {
        Some(value) => batch.require(space, key, value),
        None => batch.require_absent(space, key),
    };
}

/// The range behind a key, or the whole space.
pub(super) fn after_key(key: Option<Key>) -> KeyRange {
    key.map_or(KeyRange::all(), |key| KeyRange::all().after(&key))
}

/// Replaces an entry that must still have the value that was read.
pub(super) fn replace(batch: &mut Batch, space: Space, key: Key, read: Bytes, record: &impl Serialize) {
    batch.require(space, key.clone(), read).put(space, key, layout::encode(record));
}

/// The error after [`TURN_TIMEOUT`].
pub(super) fn turn_timeout(resource: &str) -> StorageError {
    StorageError::Unavailable { reason: format!("no turn for {resource} within {}", human(TURN_TIMEOUT)) }
}
