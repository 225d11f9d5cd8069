//! A storage that counts its calls and logs its failures.
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
use crate::storage::metrics::{Operation, StorageMetrics, failure_kind};
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

/// A storage with [`StorageMetrics`] that logs its failures with their causes, as rate-limited warnings.
#[derive(Debug)]
pub struct ObservedStorage {
    inner: Arc<dyn Storage>,
    name: String,
    metrics: StorageMetrics,
    reported: Mutex<Reported>,
}

impl ObservedStorage {
    /// Wraps a storage. `name` identifies it in the log.
    pub fn new(inner: Arc<dyn Storage>, name: impl Into<String>) -> Self {
        Self { inner, name: name.into(), metrics: StorageMetrics::default(), reported: Mutex::default() }
    }

    async fn observe<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let start = std::time::Instant::now();
        let pending = self.metrics.pending.enter();
        let outcome = call.await;
        drop(pending);
        self.metrics.latencies[operation as usize].record(start.elapsed());
        if let Err(error) = &outcome {
            self.report(operation, error);
        }
        outcome
    }

    fn report(&self, operation: Operation, error: &StorageError) {
        if matches!(error, StorageError::Conflict) {
            self.metrics.conflicts.add(1);
        }
        let Some(kind) = failure_kind(error) else { return };
        self.metrics.failures[kind].add(1);
        let error = with_causes(error);
        if let Some(suppressed) = self.reported.lock().next(&error, Instant::now()) {
            let operation = operation.name();
            tracing::warn!(storage = self.name, operation, %error, suppressed, "storage call failed");
        }
    }
}

#[async_trait]
impl Storage for ObservedStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.observe(Operation::Get, self.inner.get(space, keys)).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.observe(Operation::Scan, self.inner.scan(space, range, limit)).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.observe(Operation::commit(durability), self.inner.commit(batch, durability)).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.observe(Operation::Sync, self.inner.sync()).await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }

    fn metrics(&self) -> Option<&StorageMetrics> {
        Some(&self.metrics)
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
