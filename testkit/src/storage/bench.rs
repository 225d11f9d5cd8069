//! The environment of a case: a storage that records the operations on it.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::builder::Builder;
use enjambre_core::{
    Batch, Condition, Durability, Key, KeyRange, Limits, Space, Storage, StorageError, Write,
};

/// The number of finished operations that are recorded for a failure.
const RECORDED: usize = 200;
/// The maximum number of pending operations in a failure.
const MAX_PENDING: usize = 16;
/// The timeout for the release of the lock of a dropped storage or a killed process.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens a storage whose lock may still be released in the background.
pub(super) async fn open_when_released(
    open: impl AsyncFn() -> Result<Arc<dyn Storage>, StorageError>,
) -> Result<Arc<dyn Storage>, StorageError> {
    let deadline = tokio::time::Instant::now() + RELEASE_TIMEOUT;
    loop {
        match open().await {
            Err(StorageError::Locked { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return outcome,
        }
    }
}

/// A violation of a requirement.
#[derive(Debug)]
pub(super) struct Violation(pub(super) String);

impl Violation {
    pub(super) fn by_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Self(format!("a call panicked: {text}"))
    }
}

impl From<StorageError> for Violation {
    fn from(error: StorageError) -> Self {
        Self(format!("a valid call failed: {error} ({error:?})"))
    }
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($violation:tt)+) => {
        if !$holds {
            return Err($crate::storage::bench::Violation(format!($($violation)+)));
        }
    };
}
pub(super) use ensure;

/// The operations of a case. Clones share the record.
#[derive(Debug, Clone, Default)]
pub(super) struct Operations(Arc<Mutex<Record>>);

#[derive(Debug, Default)]
struct Record {
    count: u64,
    last: VecDeque<String>,
    /// The pending operations in the order of their start.
    pending: BTreeMap<u64, String>,
    begun: u64,
}

impl Operations {
    pub(super) fn record(&self, operation: String) {
        let mut record = self.0.lock();
        record.count += 1;
        if record.last.len() == RECORDED {
            record.last.pop_front();
        }
        record.last.push_back(operation);
    }

    /// Records the start of an operation.
    fn begin(&self, operation: String) -> Pending {
        let mut record = self.0.lock();
        record.begun += 1;
        let number = record.begun;
        record.pending.insert(number, operation);
        Pending { operations: self.clone(), number }
    }

    pub(super) fn count(&self) -> u64 {
        self.0.lock().count
    }

    /// Returns the last operations, oldest first, then the pending ones.
    pub(super) fn last(&self) -> Vec<String> {
        let record = self.0.lock();
        let pending = record.pending.values().take(MAX_PENDING);
        let pending = pending.map(|operation| format!("{operation} -> pending"));
        record.last.iter().cloned().chain(pending).collect()
    }
}

/// A pending operation. If it is dropped, it was cancelled.
struct Pending {
    operations: Operations,
    number: u64,
}

impl Pending {
    /// Records the result.
    fn end<T>(self, outcome: &Result<T, StorageError>, show: impl FnOnce(&T) -> String) {
        let result = match outcome {
            Ok(value) => show(value),
            Err(error) => format!("error: {error}"),
        };
        self.record(&result);
    }

    fn record(&self, result: &str) {
        let operation = self.operations.0.lock().pending.remove(&self.number);
        if let Some(operation) = operation {
            self.operations.record(format!("{operation} -> {result}"));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.record("cancelled");
    }
}

/// A storage that records its operations. Clones share the record.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    storage: Arc<dyn Storage>,
    operations: Operations,
}

impl Probe {
    pub(super) async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let shown = some(keys.iter().map(|key| short(key.as_bytes())));
        let call = self.operations.begin(format!("get {} {shown}", space.name()));
        let outcome = self.storage.get(space, keys).await;
        call.end(&outcome, |values| {
            some(values.iter().map(|value| value.as_ref().map_or("none".to_owned(), |v| short(v))))
        });
        outcome
    }

    /// Returns the value of a key.
    pub(super) async fn value(&self, space: Space, key: &Key) -> Result<Option<Bytes>, Violation> {
        let mut values = self.get(space, std::slice::from_ref(key)).await?;
        ensure!(values.len() == 1, "a get of 1 key returned {} values", values.len());
        Ok(values.remove(0))
    }

    pub(super) async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        let call = self.operations.begin(format!("scan {} {range:?} limit {limit}", space.name()));
        let outcome = self.storage.scan(space, range, limit).await;
        call.end(&outcome, |page| {
            let keys = some(page.iter().map(|(key, _)| short(key.as_bytes())));
            format!("{} entries {keys}", page.len())
        });
        outcome
    }

    /// Returns all entries of a range, read page by page.
    pub(super) async fn entries(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, Violation> {
        let mut all: Vec<(Key, Bytes)> = Vec::new();
        let mut rest = range;
        loop {
            let page = self.scan(space, rest.clone(), limit).await?;
            ensure!(page.len() <= limit, "a page with the limit {limit} has {} entries", page.len());
            let Some((last, _)) = page.last() else { return Ok(all) };
            let advances = all.last().is_none_or(|(before, _)| before < &page[0].0);
            ensure!(advances, "a page does not continue after the previous one");
            rest = rest.after(last);
            all.extend(page);
        }
    }

    pub(super) async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let call = self.operations.begin(format!("commit {durability:?} {}", describe(&batch)));
        let outcome = self.storage.commit(batch, durability).await;
        call.end(&outcome, |()| "ok".to_owned());
        outcome
    }

    pub(super) async fn put(
        &self,
        space: Space,
        key: &Key,
        value: impl Into<Bytes>,
    ) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        batch.put(space, key.clone(), value);
        self.commit(batch, Durability::Buffered).await
    }

    pub(super) async fn sync(&self) -> Result<(), StorageError> {
        let call = self.operations.begin("sync".to_owned());
        let outcome = self.storage.sync().await;
        call.end(&outcome, |()| "ok".to_owned());
        outcome
    }

    pub(super) async fn close(&self) -> Result<(), StorageError> {
        let call = self.operations.begin("close".to_owned());
        let outcome = self.storage.close().await;
        call.end(&outcome, |()| "ok".to_owned());
        outcome
    }

    pub(super) fn limits(&self) -> Limits {
        self.storage.limits()
    }
}

/// A storage at its own place.
pub(super) struct Bench<'a, B: Builder> {
    builder: &'a B,
    pub(super) probe: Probe,
    // Declared after the storage, so that files are removed after they are closed.
    place: B::Place,
}

impl<'a, B: Builder> Bench<'a, B> {
    pub(super) async fn new(builder: &'a B, operations: Operations) -> Result<Self, Violation> {
        let place = builder.place();
        let call = operations.begin("open".to_owned());
        let opened = builder.open(&place).await;
        call.end(&opened, |_| "ok".to_owned());
        Ok(Self { builder, probe: Probe { storage: opened?, operations }, place })
    }

    pub(super) const fn place(&self) -> &B::Place {
        &self.place
    }

    pub(super) fn note(&self, operation: String) {
        self.probe.operations.record(operation);
    }

    /// Closes the storage and reopens it at once.
    pub(super) async fn reopen(&mut self) -> Result<(), Violation> {
        self.probe.close().await?;
        let call = self.probe.operations.begin("reopen".to_owned());
        let opened = self.builder.open(&self.place).await;
        call.end(&opened, |_| "ok".to_owned());
        if matches!(opened, Err(StorageError::Locked { .. })) {
            return Err(Violation("the lock is still held after a close".to_owned()));
        }
        self.probe.storage = opened?;
        Ok(())
    }

    /// Opens the storage another time.
    pub(super) async fn open_another(&self) -> Result<Arc<dyn Storage>, StorageError> {
        let call = self.probe.operations.begin("second open".to_owned());
        let opened = self.builder.open(&self.place).await;
        call.end(&opened, |_| "ok".to_owned());
        opened
    }

    /// See [`Builder::is_shared`].
    pub(super) fn is_shared(&self) -> bool {
        self.builder.is_shared(&self.place)
    }

    /// Drops the storage without a close and reopens it.
    pub(super) async fn drop_and_open(&mut self) -> Result<(), Violation> {
        let nothing: Arc<dyn Storage> = Arc::new(enjambre_core::storage::memory::Memory::new());
        self.probe.storage = nothing;
        self.note("drop".to_owned());
        self.open_after_release().await
    }

    /// Opens the storage after its lock is released.
    pub(super) async fn open_after_release(&mut self) -> Result<(), Violation> {
        let call = self.probe.operations.begin("reopen".to_owned());
        let opened = open_when_released(async || self.builder.open(&self.place).await).await;
        call.end(&opened, |_| "ok".to_owned());
        self.probe.storage = opened?;
        Ok(())
    }

    pub(super) async fn finish(&self) -> Result<(), Violation> {
        Ok(self.probe.close().await?)
    }
}

/// Creates a key.
pub(super) fn key(bytes: impl AsRef<[u8]>) -> Key {
    Key::new(bytes.as_ref().to_vec()).expect("keys of the suite have 1 to 1024 bytes")
}

/// Formats bytes, truncated to 24.
pub(super) fn short(bytes: &[u8]) -> String {
    match bytes.get(..24) {
        Some(head) if bytes.len() > 24 => format!("{}...({} bytes)", head.escape_ascii(), bytes.len()),
        _ => bytes.escape_ascii().to_string(),
    }
}

fn describe(batch: &Batch) -> String {
    let conditions = batch.conditions.iter().map(|condition| match condition {
        Condition::Absent(space, key) => format!("absent {}/{}", space.name(), short(key.as_bytes())),
        Condition::Equals(space, key, value) => {
            format!("{}/{} is {}", space.name(), short(key.as_bytes()), short(value))
        }
    });
    let writes = batch.writes.iter().map(|write| match write {
        Write::Put(space, key, value) => {
            format!("put {}/{}={}", space.name(), short(key.as_bytes()), short(value))
        }
        Write::Delete(space, key) => format!("delete {}/{}", space.name(), short(key.as_bytes())),
    });
    some(conditions.chain(writes))
}

/// Formats the first 8 items and the number of further ones.
fn some(all: impl Iterator<Item = String>) -> String {
    let mut all = all.fuse();
    let mut shown: Vec<String> = all.by_ref().take(8).collect();
    let more = all.count();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    format!("[{}]", shown.join(", "))
}
