//! A storage that counts: calls, errors by kind, bytes, and how long calls took, for each method and durability.
//!
//! A call costs a few additions to atomic counters and two looks at the clock; nothing is locked and nothing allocated.
//! The log is told once a minute of what happened in that minute, and of all when the storage is closed; whoever holds
//! the [`Metrics`] can look at any time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::AbortHandle;

use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// How often the log is told.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Calls that took less than 2 to the power of its index in microseconds, and no less than the bucket before; the last
/// one has all that took longer, from 34 seconds on.
const BUCKETS: usize = 27;

/// What is counted apart.
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

impl Method {
    /// All, in the order in which they are told of.
    pub const ALL: [Self; 5] = [Self::Get, Self::Scan, Self::Buffered, Self::Durable, Self::Sync];

    /// Its name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Scan => "scan",
            Self::Buffered => "buffered commit",
            Self::Durable => "durable commit",
            Self::Sync => "sync",
        }
    }
}

/// Errors that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A condition did not hold; nothing is wrong.
    Conflict,
    /// Out of room.
    Full,
    /// The outcome of a commit is not known.
    Indeterminate,
    /// No answer at the moment.
    Unavailable,
    /// Damage was found.
    Corrupt,
    /// Any other.
    Other,
}

impl ErrorKind {
    /// All, in the order in which they are told of.
    pub const ALL: [Self; 6] =
        [Self::Conflict, Self::Full, Self::Indeterminate, Self::Unavailable, Self::Corrupt, Self::Other];

    /// Its name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Full => "full",
            Self::Indeterminate => "indeterminate",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Other => "other",
        }
    }

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

/// The counters of one method.
#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    buckets: [AtomicU64; BUCKETS],
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    methods: [Counters; Method::ALL.len()],
}

/// What was counted of one method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes of keys and values that were asked for, found or written; those of failed calls are not counted.
    pub bytes: u64,
    errors: [u64; ErrorKind::ALL.len()],
    buckets: [u64; BUCKETS],
}

/// What was counted at a moment, by [`Method::ALL`].
pub type Snapshot = [Counted; Method::ALL.len()];

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

    /// What was counted so far. Calls that end in this moment may be in it in part.
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
    /// How many calls ended, in whatever way.
    pub fn calls(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many calls ended with this error.
    pub const fn errors(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize]
    }

    /// This share of the calls, from 0 to 1, took no longer than this; of a histogram, so up to twice of what it was.
    /// Zero without any calls.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = ((self.calls() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(Duration::ZERO, |index| Duration::from_micros(1 << index))
    }

    /// What was counted since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut errors = self.errors;
        let mut buckets = self.buckets;
        errors.iter_mut().zip(earlier.errors).for_each(|(now, then)| *now = now.saturating_sub(then));
        buckets.iter_mut().zip(earlier.buckets).for_each(|(now, then)| *now = now.saturating_sub(then));
        Self { bytes: self.bytes.saturating_sub(earlier.bytes), errors, buckets }
    }
}

/// One line: calls, bytes, what half, 99 of 100 and all of them took at most, and the errors that there were.
impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, all] = [0.5, 0.99, 1.0].map(|share| self.quantile(share));
        let (calls, bytes) = (self.calls(), self.bytes);
        write!(
            f,
            "{calls} calls, {bytes} bytes, half within {half:?}, 99% within {most:?}, all within {all:?}"
        )?;
        for kind in ErrorKind::ALL.into_iter().filter(|kind| self.errors(*kind) > 0) {
            write!(f, ", {} {}", self.errors(kind), kind.name())?;
        }
        Ok(())
    }
}

/// A storage with counters.
#[derive(Debug)]
pub struct MeteredStorage {
    inner: Arc<dyn Storage>,
    metrics: Arc<Metrics>,
    name: String,
    teller: AbortHandle,
    closed: AtomicBool,
}

impl MeteredStorage {
    /// Counts what goes through; the log calls it `name`. To be called on a runtime, which tells the log every minute.
    pub fn new(inner: Arc<dyn Storage>, name: impl Into<String>) -> Self {
        let (name, metrics) = (name.into(), Arc::new(Metrics::default()));
        let telling = tell_every_minute(name.clone(), Arc::clone(&metrics));
        let teller = tokio::spawn(telling).abort_handle();
        Self { inner, metrics, name, teller, closed: AtomicBool::new(false) }
    }

    /// What is counted.
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
        self.teller.abort();
    }
}

async fn tell_every_minute(name: String, metrics: Arc<Metrics>) {
    let mut told = metrics.snapshot();
    loop {
        tokio::time::sleep(TOLD_EVERY).await;
        let now = metrics.snapshot();
        tell(&name, "in the last minute", &now, &told);
        told = now;
    }
}

/// A line for each method that was called.
fn tell(name: &str, when: &str, now: &Snapshot, since: &Snapshot) {
    for ((method, now), since) in Method::ALL.into_iter().zip(now).zip(since) {
        let counted = now.since(since);
        if counted.calls() > 0 {
            tracing::info!("{name} {when}: {}: {counted}", method.name());
        }
    }
}

#[async_trait]
impl Storage for MeteredStorage {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let asked = || keys.iter().map(|key| key.as_bytes().len()).sum::<usize>();
        self.counted(Method::Get, self.inner.get(space, keys), |values| {
            asked() + values.iter().flatten().map(Bytes::len).sum::<usize>()
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
            self.teller.abort();
            tell(&self.name, "since the start", &self.metrics.snapshot(), &Snapshot::default());
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
    use crate::storage::memory::Memory;

    const SPACE: Space = Space::new("s");

    fn key(n: u8) -> Key {
        Key::new(vec![n]).unwrap()
    }

    #[tokio::test]
    async fn calls_bytes_and_errors_are_counted_by_method_and_kind() {
        let faults = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
        let storage = MeteredStorage::new(faults.clone(), "test");
        let mut batch = Batch::new();
        batch.require_absent(SPACE, key(1)).put(SPACE, key(1), vec![0; 99]);
        storage.commit(batch.clone(), Durability::Durable).await.unwrap();
        assert!(storage.commit(batch, Durability::Durable).await.is_err());
        faults.add(Operation::Commit, When::Always, Fault::Full);
        assert!(storage.commit(Batch::new(), Durability::Buffered).await.is_err());
        faults.add(Operation::Sync, When::Nth(1), Fault::Unavailable);
        assert!(storage.sync().await.is_err());
        storage.sync().await.unwrap();
        storage.get(SPACE, &[key(1), key(2)]).await.unwrap();
        storage.scan(SPACE, KeyRange::all(), 10).await.unwrap();
        let counted = storage.metrics().snapshot();
        let of = |method: Method| counted[method as usize];
        assert_eq!(Method::ALL.map(|method| of(method).calls()), [1, 1, 1, 2, 2]);
        assert_eq!(Method::ALL.map(|method| of(method).bytes), [101, 100, 0, 101, 0]);
        assert_eq!(of(Method::Durable).errors(ErrorKind::Conflict), 1);
        assert_eq!(of(Method::Buffered).errors(ErrorKind::Full), 1);
        assert_eq!(of(Method::Sync).errors(ErrorKind::Unavailable), 1);
        assert_eq!(of(Method::Get).errors, [0; 6]);
    }

    #[test]
    fn a_quantile_is_the_upper_end_of_its_bucket() {
        let metrics = Metrics::default();
        let micros = [0, 1, 2, 3, 100, 1_000_000, u64::MAX];
        for took in micros {
            metrics.count(Method::Sync, Duration::from_micros(took), &Ok(()), |()| 0);
        }
        let counted = metrics.snapshot()[Method::Sync as usize];
        assert_eq!(counted.calls(), 7);
        let at = |share| counted.quantile(share).as_micros();
        assert_eq!([at(0.0), at(0.2), at(0.5), at(0.7), at(0.8)], [1, 2, 4, 128, 1 << 20]);
        assert_eq!(at(1.0), 1 << 26, "the last bucket has no end");
        assert_eq!(Counted::default().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn what_was_since_is_the_difference_and_reads_as_one_line() {
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
        assert_eq!(
            since.to_string(),
            "2 calls, 5 bytes, half within 4µs, 99% within 4µs, all within 4µs, 1 conflict"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_storage_that_is_dropped_leaves_no_task_behind() {
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
