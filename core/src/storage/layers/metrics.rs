//! A storage with metrics: number and latency of calls, bytes, and errors by kind, for each method and durability.
//!
//! A call costs a few atomic additions and two clock reads, without locks and allocations. The metrics of the last minute are
//! logged every minute, and the totals at the close. [`Metrics`] is readable at any time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::AbortHandle;

use crate::model::time::human;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// The interval of log messages.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The number of latency buckets. Bucket `i` counts calls below `2^i` microseconds and not below the previous bucket. The last
/// one counts all calls above 34 seconds.
const BUCKETS: usize = 27;

/// A method with separate counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// [`Storage::get`].
    Get,
    /// [`Storage::scan`].
    Scan,
    /// [`Storage::commit`] with [`Durability::Buffered`].
    Buffered,
    /// [`Storage::commit`] with [`Durability::Durable`].
    Durable,
    /// [`Storage::sync`].
    Sync,
}

/// The names of the methods in the log.
const METHODS: [&str; 5] = ["get", "scan", "buffered commit", "durable commit", "sync"];

/// An error kind with a separate counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A condition did not hold, which is not a failure.
    Conflict,
    /// No space left.
    Full,
    /// The outcome of a commit is unknown.
    Indeterminate,
    /// The storage is unavailable.
    Unavailable,
    /// The database is damaged.
    Corrupt,
    /// Any other error.
    Other,
}

impl ErrorKind {
    const fn of(error: &StorageError) -> Self {
        match error {
            StorageError::Conflict => Self::Conflict,
            StorageError::Full { .. } => Self::Full,
            StorageError::Indeterminate { .. } => Self::Indeterminate,
            StorageError::Unavailable { .. } => Self::Unavailable,
            StorageError::Corrupt { .. } => Self::Corrupt,
            _ => Self::Other,
        }
    }
}

/// The names of the error kinds in the log.
const ERROR_KINDS: [&str; 6] = ["conflict", "full", "indeterminate", "unavailable", "corrupt", "other"];

/// The counters of one method.
#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    errors: [AtomicU64; ERROR_KINDS.len()],
    buckets: [AtomicU64; BUCKETS],
}

/// The counters since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    methods: [Counters; METHODS.len()],
}

/// The counts of one method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// The bytes of requested keys, returned values and written entries of successful calls.
    pub bytes: u64,
    errors: [u64; ERROR_KINDS.len()],
    buckets: [u64; BUCKETS],
}

/// The counts of all methods at one time, indexed by [`Method`].
pub type Snapshot = [Counted; METHODS.len()];

impl Metrics {
    fn count<T>(
        &self,
        method: Method,
        took: Duration,
        outcome: &Result<T, StorageError>,
        bytes: impl FnOnce(&T) -> usize,
    ) {
        let counters = &self.methods[method as usize];
        let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        add(&counters.buckets[bucket(took)], 1);
        match outcome {
            Ok(value) => add(&counters.bytes, bytes(value) as u64),
            Err(error) => add(&counters.errors[ErrorKind::of(error) as usize], 1),
        };
    }

    /// Returns the current counts. A call that ends concurrently may be counted partially.
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.methods.each_ref().map(|counters| Counted {
            bytes: read(&counters.bytes),
            errors: counters.errors.each_ref().map(read),
            buckets: counters.buckets.each_ref().map(read),
        })
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    ((u64::BITS - micros.leading_zeros()) as usize).min(BUCKETS - 1)
}

impl Counted {
    /// The number of finished calls.
    pub fn calls(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The number of calls that failed with this error.
    pub const fn errors(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize]
    }

    /// Returns the latency quantile `share`, from 0 to 1, as the upper bound of its bucket. Zero if there were no calls.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = ((self.calls() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(Duration::ZERO, |index| Duration::from_micros(1 << index))
    }

    /// Returns the difference to earlier counts.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut errors = self.errors;
        let mut buckets = self.buckets;
        errors.iter_mut().zip(earlier.errors).for_each(|(now, then)| *now = now.saturating_sub(then));
        buckets.iter_mut().zip(earlier.buckets).for_each(|(now, then)| *now = now.saturating_sub(then));
        Self { bytes: self.bytes.saturating_sub(earlier.bytes), errors, buckets }
    }
}

/// One line with calls, bytes, latency quantiles and nonzero error counts.
impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| human(self.quantile(share)));
        let (calls, bytes) = (self.calls(), self.bytes);
        write!(f, "{calls} calls, {bytes} bytes, p50 {p50}, p99 {p99}, max {max}")?;
        for (kind, count) in ERROR_KINDS.into_iter().zip(self.errors).filter(|(_, count)| *count > 0) {
            write!(f, ", {count} {kind}")?;
        }
        Ok(())
    }
}

/// A storage with metrics.
#[derive(Debug)]
pub struct MeteredStorage {
    inner: Arc<dyn Storage>,
    metrics: Arc<Metrics>,
    name: String,
    logger: AbortHandle,
    closed: AtomicBool,
}

impl MeteredStorage {
    /// Wraps a storage, which log messages call `name`, and starts a task that logs every minute.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(inner: Arc<dyn Storage>, name: impl Into<String>) -> Self {
        let (name, metrics) = (name.into(), Arc::new(Metrics::default()));
        let logging = log_every_minute(name.clone(), Arc::clone(&metrics));
        let logger = tokio::spawn(logging).abort_handle();
        Self { inner, metrics, name, logger, closed: AtomicBool::new(false) }
    }

    /// The metrics.
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    async fn counted<T>(
        &self,
        method: Method,
        call: impl Future<Output = Result<T, StorageError>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Result<T, StorageError> {
        let began = Instant::now();
        let outcome = call.await;
        self.metrics.count(method, began.elapsed(), &outcome, bytes);
        outcome
    }
}

impl Drop for MeteredStorage {
    fn drop(&mut self) {
        self.logger.abort();
    }
}

async fn log_every_minute(name: String, metrics: Arc<Metrics>) {
    let mut logged = metrics.snapshot();
    loop {
        tokio::time::sleep(LOG_INTERVAL).await;
        let now = metrics.snapshot();
        log(&name, "last minute", &now, &logged);
        logged = now;
    }
}

/// Logs a line for each method that was called.
fn log(name: &str, period: &str, now: &Snapshot, since: &Snapshot) {
    for ((method, now), since) in METHODS.into_iter().zip(now).zip(since) {
        let counted = now.since(since);
        if counted.calls() > 0 {
            tracing::info!(storage = name, period, method, "{counted}");
        }
    }
}

#[async_trait]
impl Storage for MeteredStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let requested = || keys.iter().map(|key| key.as_bytes().len()).sum::<usize>();
        self.counted(Method::Get, self.inner.get(space, keys), |values| {
            requested() + values.iter().flatten().map(Bytes::len).sum::<usize>()
        })
        .await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.counted(Method::Scan, self.inner.scan(space, range, limit), |page| {
            page.iter().map(|(key, value)| key.as_bytes().len() + value.len()).sum()
        })
        .await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let method = match durability {
            Durability::Buffered => Method::Buffered,
            Durability::Durable => Method::Durable,
        };
        let size = batch.size();
        self.counted(method, self.inner.commit(batch, durability), |()| size).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.counted(Method::Sync, self.inner.sync(), |()| 0).await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        let outcome = self.inner.close().await;
        if !self.closed.swap(true, Ordering::Relaxed) {
            self.logger.abort();
            log(&self.name, "total", &self.metrics.snapshot(), &Snapshot::default());
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    #[test]
    fn quantile_is_upper_bound_of_bucket() {
        let metrics = Metrics::default();
        let micros = [0, 1, 2, 3, 100, 1_000_000, u64::MAX];
        for took in micros {
            metrics.count(Method::Sync, Duration::from_micros(took), &Ok(()), |()| 0);
        }
        let counted = metrics.snapshot()[Method::Sync as usize];
        assert_eq!(counted.calls(), 7);
        let at = |share| counted.quantile(share).as_micros();
        assert_eq!([at(0.0), at(0.2), at(0.5), at(0.7), at(0.8)], [1, 2, 4, 128, 1 << 20]);
        assert_eq!(at(1.0), 1 << 26, "the last bucket is unbounded");
        assert_eq!(Counted::default().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn since_returns_difference() {
        let metrics = Metrics::default();
        let count = |outcome: Result<(), StorageError>| {
            metrics.count(Method::Get, Duration::from_micros(3), &outcome, |()| 5);
        };
        count(Ok(()));
        let before = metrics.snapshot();
        count(Ok(()));
        count(Err(StorageError::Conflict));
        let after = metrics.snapshot();
        let since = after[Method::Get as usize].since(&before[Method::Get as usize]);
        assert_eq!(since.to_string(), "2 calls, 5 bytes, p50 4us, p99 4us, max 4us, 1 conflict");
    }

    #[tokio::test(start_paused = true)]
    async fn drop_ends_logging_task() {
        let metrics = {
            let storage = MeteredStorage::new(Arc::new(Memory::new()), "test");
            storage.close().await.unwrap();
            storage.close().await.unwrap();
            Arc::clone(storage.metrics())
        };
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&metrics), 1);
    }
}
