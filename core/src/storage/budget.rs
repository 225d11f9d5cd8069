//! Limits of the queues of a backend, in requests and bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::StorageError;
use super::value::Batch;

/// The unit of a limit in bytes, since a semaphore counts to `u32::MAX` only.
const UNIT: usize = 1024;

/// A bounded number of permits with a FIFO queue.
#[derive(Debug)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    /// A budget of at least one permit.
    pub fn new(total: usize) -> Self {
        let total = total.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize)) as u32;
        Self { semaphore: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Acquires `count` permits, at least one and at most all. Fails with `Closed` after [`Budget::close`].
    pub async fn acquire(&self, count: usize) -> Result<OwnedSemaphorePermit, StorageError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX).clamp(1, self.total);
        self.semaphore.clone().acquire_many_owned(count).await.map_err(|_| StorageError::Closed)
    }

    /// Refuses further calls and those that wait.
    pub fn close(&self) {
        self.semaphore.close();
    }
}

/// The limits of a queue of commits.
#[derive(Debug)]
pub struct CommitBudget {
    commits: Budget,
    units: Budget,
}

impl CommitBudget {
    /// A budget of commits and of the bytes of their batches. A larger batch is queued alone.
    pub fn new(commits: usize, bytes: usize) -> Self {
        Self { commits: Budget::new(commits), units: Budget::new(bytes / UNIT) }
    }

    /// Waits for the permits to queue a batch.
    pub async fn acquire(&self, batch: &Batch) -> Result<[OwnedSemaphorePermit; 2], StorageError> {
        // All callers acquire in this order, so they cannot deadlock.
        Ok([self.commits.acquire(1).await?, self.units.acquire(batch.size().div_ceil(UNIT)).await?])
    }

    /// Refuses further calls and those that wait.
    pub fn close(&self) {
        self.commits.close();
        self.units.close();
    }
}
