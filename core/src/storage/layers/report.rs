//! A storage that logs its failures.
//!
//! Callers and remotes receive only the kind of a failure, for example `full`. The log contains its causes: which disk is full,
//! which server refuses connections. Conflicts and invalid requests are outcomes and not failures of the storage.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::inspect::with_causes;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// Minimum time between warnings about the same failure.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum time between warnings.
const INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Reported {
    last: Option<(Instant, String)>,
    suppressed: u64,
}

impl Reported {
    /// Returns the number of failures that were suppressed before this one, or `None` if this one is suppressed, too.
    fn next(&mut self, error: &str, now: Instant) -> Option<u64> {
        let is_due = self.last.as_ref().is_none_or(|(at, last)| {
            now.duration_since(*at) >= if last == error { REPEAT_INTERVAL } else { INTERVAL }
        });
        if !is_due {
            self.suppressed += 1;
            return None;
        }
        self.last = Some((now, error.to_owned()));
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// A storage that logs its failures with their causes, as rate-limited warnings.
#[derive(Debug)]
pub struct ReportingStorage {
    inner: Arc<dyn Storage>,
    name: String,
    reported: Mutex<Reported>,
}

impl ReportingStorage {
    /// Wraps a storage. `name` identifies it in the log.
    pub fn new(inner: Arc<dyn Storage>, name: impl Into<String>) -> Self {
        Self { inner, name: name.into(), reported: Mutex::default() }
    }

    fn report<T>(&self, action: &str, outcome: Result<T, StorageError>) -> Result<T, StorageError> {
        let error = match &outcome {
            Ok(_)
            | Err(
                StorageError::Conflict
                | StorageError::InvalidKey { .. }
                | StorageError::TooLarge { .. }
                | StorageError::Closed,
            ) => return outcome,
            Err(error) => with_causes(error),
        };
        if let Some(suppressed) = self.reported.lock().next(&error, Instant::now()) {
            tracing::warn!(storage = self.name, action, %error, suppressed, "storage call failed");
        }
        outcome
    }
}

#[async_trait]
impl Storage for ReportingStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.report("get", self.inner.get(space, keys).await)
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.report("scan", self.inner.scan(space, range, limit).await)
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.report("commit", self.inner.commit(batch, durability).await)
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.report("sync", self.inner.sync().await)
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failure_is_reported_once_per_interval() {
        let (mut reported, start) = (Reported::default(), Instant::now());
        assert_eq!(reported.next("the disk is full", start), Some(0));
        assert_eq!(reported.next("the disk is full", start + INTERVAL), None);
        assert_eq!(reported.next("connection refused", start + INTERVAL), Some(1));
        assert_eq!(reported.next("the disk is full", start + INTERVAL), None);
        assert_eq!(reported.next("connection refused", start + INTERVAL + REPEAT_INTERVAL), Some(1));
    }
}
