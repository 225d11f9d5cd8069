//! A storage with a deadline for each call and retries of calls that are safe to repeat, for databases behind a network.
//!
//! A call has one deadline, which includes its retries and the delays between them. After the deadline a read or a sync fails
//! with [`StorageError::Unavailable`], because it changed nothing. A commit in progress fails with
//! [`StorageError::Indeterminate`], because the database may still apply it.
//!
//! Only reads and commits that failed with `Unavailable` are retried: that error guarantees that nothing was applied.
//! `Conflict` and `Indeterminate` are not retried, because a repeated batch would conflict with its own writes. `Full` is not
//! retried, because free space does not appear within seconds and the caller knows better what to discard.
//!
//! A sync is not retried either. It covers earlier commits, and when it fails, some of them may be lost: a crashed server
//! has lost its `Buffered` commits, and after a failed `fsync` the kernel marks lost pages as clean. The failure may be the
//! only sign of the loss, since a second sync succeeds. So the caller receives it, and can check or rewrite its data. A retried
//! commit hides no such loss, because it succeeds only if its own batch is applied with the requested durability.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::model::time::human;
use crate::runtime::backoff::Backoff;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// The delay before the first retry; it doubles for each further one.
const MIN_DELAY: Duration = Duration::from_millis(50);
/// The longest delay between retries.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// The settings of a [`RetryStorage`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retry {
    /// The deadline of a call, including its retries. `None` means no deadline.
    pub timeout: Option<Duration>,
    /// The maximum number of retries of a call.
    pub retries: u32,
}

/// A storage with deadlines and retries.
#[derive(Debug)]
pub struct RetryStorage {
    inner: Arc<dyn Storage>,
    settings: Retry,
}

/// One call with its deadline.
struct Call {
    deadline: Option<Instant>,
    retries_left: u32,
    backoff: Backoff,
}

impl Call {
    fn new(settings: Retry) -> Self {
        let deadline = settings.timeout.map(|timeout| Instant::now() + timeout);
        Self { deadline, retries_left: settings.retries, backoff: Backoff::new(MIN_DELAY, MAX_DELAY) }
    }

    async fn attempt<T>(&self, attempt: impl Future<Output = T>) -> Result<T, Elapsed> {
        match self.deadline {
            None => Ok(attempt.await),
            Some(deadline) => timeout_at(deadline, attempt).await,
        }
    }

    /// Waits before a retry. Returns whether the call is to be retried.
    async fn wait_to_retry(&mut self, error: &StorageError) -> bool {
        if self.retries_left == 0 || !matches!(error, StorageError::Unavailable { .. }) {
            return false;
        }
        let next = Instant::now() + self.backoff.next_jittered();
        if self.deadline.is_some_and(|deadline| next >= deadline) {
            return false;
        }
        self.retries_left -= 1;
        sleep_until(next).await;
        true
    }
}

impl RetryStorage {
    /// Wraps a storage.
    pub const fn new(inner: Arc<dyn Storage>, settings: Retry) -> Self {
        Self { inner, settings }
    }

    fn no_reply(&self) -> String {
        format!("no reply within {}", human(self.settings.timeout.unwrap_or_default()))
    }

    /// Runs a read and retries it.
    async fn read<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let mut call = Call::new(self.settings);
        loop {
            match call.attempt(attempt()).await {
                Ok(Err(error)) if call.wait_to_retry(&error).await => {}
                Ok(outcome) => return outcome,
                Err(_) => return Err(StorageError::Unavailable { reason: self.no_reply() }),
            }
        }
    }
}

#[async_trait]
impl Storage for RetryStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.read(|| self.inner.get(space, keys)).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.read(|| self.inner.scan(space, range.clone(), limit)).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let mut call = Call::new(self.settings);
        loop {
            // The clone shares keys and values.
            let attempt = self.inner.commit(batch.clone(), durability);
            match call.attempt(attempt).await {
                Ok(Err(error)) if call.wait_to_retry(&error).await => {}
                Ok(outcome) => return outcome,
                Err(_) => {
                    return Err(StorageError::Indeterminate { source: self.no_reply().into() });
                }
            }
        }
    }

    async fn sync(&self) -> Result<(), StorageError> {
        let attempt = Call::new(self.settings).attempt(self.inner.sync()).await;
        attempt.unwrap_or_else(|_| Err(StorageError::Unavailable { reason: self.no_reply() }))
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }
}
