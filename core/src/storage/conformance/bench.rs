//! What a case works with: a storage that remembers the operations on it.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Builder;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Condition, Durability, Key, KeyRange, Limits, Space, Write};

/// How many operations are kept for the message of a failure.
const REMEMBERED: usize = 40;
/// How many more are shown that have no answer.
const SHOWN_UNDER_WAY: usize = 16;
/// How long the lock of a storage may stay that was dropped, or whose process was killed.
const RELEASE: Duration = Duration::from_secs(20);

/// Opens a storage that somebody may still let go of in the background.
pub(super) async fn open_when_free(
    open: impl AsyncFn() -> Result<Arc<dyn Storage>, StorageError>,
) -> Result<Arc<dyn Storage>, StorageError> {
    let deadline = tokio::time::Instant::now() + RELEASE;
    loop {
        match open().await {
            Err(StorageError::Locked { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return outcome,
        }
    }
}

/// The obligation that is broken.
#[derive(Debug)]
pub(super) struct Broken(pub(super) String);

impl Broken {
    pub(super) fn by_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text");
        Self(format!("no call panics, but one did: {text}"))
    }
}

impl From<StorageError> for Broken {
    fn from(error: StorageError) -> Self {
        Self(format!("a call without a fault succeeds, but the last one gave: {error} ({error:?})"))
    }
}

/// Ends the case unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($obligation:tt)+) => {
        if !$holds {
            return Err($crate::storage::conformance::bench::Broken(format!($($obligation)+)));
        }
    };
}
pub(super) use ensure;

/// The operations of a case. Clones mean the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Operations(Arc<Mutex<Remembered>>);

#[derive(Debug, Default)]
struct Remembered {
    count: u64,
    last: VecDeque<String>,
    /// Those that have no answer yet, by the order in which they began.
    under_way: BTreeMap<u64, String>,
    begun: u64,
}

impl Operations {
    pub(super) fn remember(&self, operation: String) {
        let mut remembered = self.0.lock();
        remembered.count += 1;
        if remembered.last.len() == REMEMBERED {
            remembered.last.pop_front();
        }
        remembered.last.push_back(operation);
    }

    /// An operation has begun.
    fn begin(&self, operation: String) -> UnderWay {
        let mut remembered = self.0.lock();
        remembered.begun += 1;
        let number = remembered.begun;
        remembered.under_way.insert(number, operation);
        UnderWay { operations: self.clone(), number }
    }

    pub(super) fn count(&self) -> u64 {
        self.0.lock().count
    }

    /// The last of them, oldest first, and behind them those that have no answer yet.
    pub(super) fn last(&self) -> Vec<String> {
        let remembered = self.0.lock();
        let waiting = remembered.under_way.values().take(SHOWN_UNDER_WAY);
        let waiting = waiting.map(|operation| format!("{operation} -> no answer yet"));
        remembered.last.iter().cloned().chain(waiting).collect()
    }
}

/// An operation without an answer. Dropped, it was given up.
struct UnderWay {
    operations: Operations,
    number: u64,
}

impl UnderWay {
    /// Remembers the answer.
    fn end<T>(self, outcome: &Result<T, StorageError>, show: impl FnOnce(&T) -> String) {
        let answer = match outcome {
            Ok(value) => show(value),
            Err(error) => format!("error: {error}"),
        };
        self.remember(&answer);
    }

    fn remember(&self, answer: &str) {
        let operation = self.operations.0.lock().under_way.remove(&self.number);
        if let Some(operation) = operation {
            self.operations.remember(format!("{operation} -> {answer}"));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.remember("given up");
    }
}

/// A storage whose operations are remembered. Clones share the memory.
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

    /// The value of one key.
    pub(super) async fn value(&self, space: Space, key: &Key) -> Result<Option<Bytes>, Broken> {
        let mut values = self.get(space, std::slice::from_ref(key)).await?;
        ensure!(values.len() == 1, "a get answers each key once, but for 1 key there are {}", values.len());
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

    /// Every entry of the range, page by page.
    pub(super) async fn entries(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, Broken> {
        let mut all: Vec<(Key, Bytes)> = Vec::new();
        let mut rest = range;
        loop {
            let page = self.scan(space, rest.clone(), limit).await?;
            ensure!(page.len() <= limit, "a page has at most {limit} entries, but this has {}", page.len());
            let Some((last, _)) = page.last() else { return Ok(all) };
            let advances = all.last().is_none_or(|(before, _)| before < &page[0].0);
            ensure!(advances, "a page goes on after the one before");
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

/// A storage at a place of its own.
pub(super) struct Bench<'a, B: Builder> {
    builder: &'a B,
    pub(super) probe: Probe,
    // After the storage, so that files are removed when nobody has them open.
    place: B::Place,
}

impl<'a, B: Builder> Bench<'a, B> {
    pub(super) async fn new(builder: &'a B, operations: Operations) -> Result<Self, Broken> {
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
        self.probe.operations.remember(operation);
    }

    /// Closes the storage and opens it again, at once: a close has let go of everything.
    pub(super) async fn reopen(&mut self) -> Result<(), Broken> {
        self.probe.close().await?;
        let call = self.probe.operations.begin("open again".to_owned());
        let opened = self.builder.open(&self.place).await;
        call.end(&opened, |_| "ok".to_owned());
        if matches!(opened, Err(StorageError::Locked { .. })) {
            return Err(Broken("a close lets go of the lock, but it is still held".to_owned()));
        }
        self.probe.storage = opened?;
        Ok(())
    }

    /// Drops the storage without a close and opens it again.
    pub(super) async fn drop_and_open(&mut self) -> Result<(), Broken> {
        let nothing: Arc<dyn Storage> = Arc::new(crate::storage::memory::Memory::new());
        self.probe.storage = nothing;
        self.note("drop".to_owned());
        self.open_left_behind().await
    }

    /// Opens what nobody closed, once it is let go of.
    pub(super) async fn open_left_behind(&mut self) -> Result<(), Broken> {
        let call = self.probe.operations.begin("open again".to_owned());
        let opened = open_when_free(async || self.builder.open(&self.place).await).await;
        call.end(&opened, |_| "ok".to_owned());
        self.probe.storage = opened?;
        Ok(())
    }

    pub(super) async fn finish(&self) -> Result<(), Broken> {
        Ok(self.probe.close().await?)
    }
}

/// A key of a case.
pub(super) fn key(bytes: impl AsRef<[u8]>) -> Key {
    Key::new(bytes.as_ref().to_vec()).expect("the kit's keys have 1 to 1024 bytes")
}

/// Bytes as people can read them, cut.
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

/// The first of them, and how many more there are.
fn some(all: impl Iterator<Item = String>) -> String {
    let mut all = all.fuse();
    let mut shown: Vec<String> = all.by_ref().take(8).collect();
    let more = all.count();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    format!("[{}]", shown.join(", "))
}
