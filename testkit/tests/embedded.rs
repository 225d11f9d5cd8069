//! The adapter [`Embedded`] over an engine with injected faults.

use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Waker};

use std::time::Duration;

use bytes::Bytes;
use enjambre_core::{
    Batch, Durability, Embedded, EmbeddedSettings, Key, KeyRange, Space, Storage, StorageError,
};
use enjambre_testkit::storage::fake::{EngineFault, FakeDisk, FakeEngine, REFUSED};

const SPACE: Space = Space::new("s");

fn quick() -> EmbeddedSettings {
    let mut settings = EmbeddedSettings::new("fake");
    settings.reopen_first = Duration::from_millis(1);
    settings.reopen_longest = Duration::from_millis(4);
    settings
}

async fn open(disk: &FakeDisk) -> Embedded<FakeEngine> {
    let disk = disk.clone();
    Embedded::open(quick(), move || disk.open()).await.expect("the engine opens")
}

fn key(name: &str) -> Key {
    Key::new(name.as_bytes().to_vec()).expect("a valid key")
}

fn put(name: &str, value: &'static str) -> Batch {
    let mut batch = Batch::new();
    batch.put(SPACE, key(name), value);
    batch
}

async fn value(storage: &impl Storage, name: &str) -> Option<Bytes> {
    storage.get(SPACE, &[key(name)]).await.expect("a successful read").remove(0)
}

type Queued<'a> = Pin<Box<dyn Future<Output = Result<(), StorageError>> + Send + 'a>>;

/// Starts a commit, which waits in the writer's queue.
fn queue<'a>(storage: &'a Embedded<FakeEngine>, batch: Batch, durability: Durability) -> Queued<'a> {
    begin(storage.commit(batch, durability))
}

fn begin(mut future: Queued<'_>) -> Queued<'_> {
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    future
}

/// Blocks the writer in a commit until the sender is dropped.
async fn hold<'a>(disk: &FakeDisk, storage: &'a Embedded<FakeEngine>) -> (Sender<()>, Queued<'a>) {
    let (release, wait) = channel();
    disk.state().on_apply.push_back(EngineFault::Block(wait));
    let held = queue(storage, put("held", "v"), Durability::Buffered);
    until(|| disk.state().on_apply.is_empty()).await;
    (release, held)
}

/// Waits for a change made by another thread.
async fn until(reached: impl Fn() -> bool) {
    let all = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("the condition becomes true within 30 s");
}

/// Repeats a commit until the storage is available.
async fn commit_when_up(storage: &Embedded<FakeEngine>, batch: Batch) -> Result<(), StorageError> {
    loop {
        match storage.commit(batch.clone(), Durability::Buffered).await {
            Err(StorageError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            outcome => return outcome,
        }
    }
}

#[tokio::test]
async fn queued_commits_become_one_group_with_strongest_durability() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let (release, held) = hold(&disk, &storage).await;
    let queued: Vec<_> =
        ["a", "b", "c"].map(|name| queue(&storage, put(name, "v"), Durability::Buffered)).into();
    let durable = queue(&storage, put("d", "v"), Durability::Durable);
    let sync = begin(storage.sync());
    drop(release);
    for commit in queued.into_iter().chain([held, durable, sync]) {
        commit.await.unwrap();
    }
    assert_eq!(disk.state().applied, [(1, Durability::Buffered), (4, Durability::Durable)]);
    assert_eq!(disk.state().synced, 0, "the durable commit replaces the sync");
}

#[tokio::test]
async fn batch_sees_earlier_batches_of_its_group() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let (release, held) = hold(&disk, &storage).await;
    let step = |required: Option<&'static str>, value: &'static str| {
        let mut batch = put("k", value);
        match required {
            Some(required) => batch.require(SPACE, key("k"), required),
            None => batch.require_absent(SPACE, key("k")),
        };
        queue(&storage, batch, Durability::Buffered)
    };
    let first = step(None, "1");
    let second = step(Some("1"), "2");
    let too_late = step(None, "x");
    let third = step(Some("2"), "3");
    drop(release);
    held.await.unwrap();
    first.await.unwrap();
    second.await.unwrap();
    assert!(matches!(too_late.await, Err(StorageError::Conflict)));
    third.await.unwrap();
    assert_eq!(value(&storage, "k").await.unwrap(), "3");
    assert_eq!(disk.state().applied.len(), 2, "one group");
}

#[tokio::test]
async fn refused_group_is_retried_batch_by_batch() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let (release, held) = hold(&disk, &storage).await;
    let mut refused = Batch::new();
    refused.put(SPACE, key("beside"), "v").put(SPACE, Key::new(REFUSED).unwrap(), "v");
    let before = queue(&storage, put("before", "v"), Durability::Buffered);
    let refused = queue(&storage, refused, Durability::Buffered);
    let mut dependent = put("after", "v");
    dependent.require_absent(SPACE, key("beside"));
    let after = queue(&storage, dependent, Durability::Buffered);
    let sync = begin(storage.sync());
    drop(release);
    held.await.unwrap();
    before.await.unwrap();
    assert!(matches!(refused.await, Err(StorageError::Full { .. })));
    // It conflicts with a batch of the group that is not applied.
    after.await.unwrap();
    sync.await.unwrap();
    assert!(value(&storage, "before").await.is_some());
    assert!(value(&storage, "beside").await.is_none());
    assert_eq!(disk.state().opened, 1, "the engine stays open");
}

#[tokio::test]
async fn uncertain_commit_is_indeterminate_and_reopens_engine() {
    for (fault, applied) in [
        (EngineFault::Uncertain { applied: true }, true),
        (EngineFault::Uncertain { applied: false }, false),
        (EngineFault::Panic, false),
    ] {
        let disk = FakeDisk::default();
        let storage = open(&disk).await;
        let (release, held) = hold(&disk, &storage).await;
        disk.state().on_apply.push_back(fault);
        let group = ["a", "b"].map(|name| queue(&storage, put(name, "v"), Durability::Buffered));
        drop(release);
        held.await.unwrap();
        for commit in group {
            assert!(matches!(commit.await, Err(StorageError::Indeterminate { .. })));
        }
        commit_when_up(&storage, put("later", "v")).await.unwrap();
        assert_eq!(value(&storage, "a").await.is_some(), applied);
        assert!(value(&storage, "held").await.is_some());
        assert_eq!(disk.state().opened, 2);
        storage.close().await.unwrap();
    }
}

#[tokio::test]
async fn failed_engine_is_unavailable_until_reopened() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let (release, wait) = channel();
    let faults = [EngineFault::Fail, EngineFault::Panic, EngineFault::Fail, EngineFault::Block(wait)];
    disk.state().on_open.extend(faults);
    disk.state().on_apply.push_back(EngineFault::Uncertain { applied: false });
    let outcome = storage.commit(put("a", "v"), Durability::Durable).await;
    assert!(matches!(outcome, Err(StorageError::Indeterminate { .. })));
    let read = storage.get(SPACE, &[key("a")]).await;
    assert!(matches!(read, Err(StorageError::Unavailable { .. })), "{read:?}");
    until(|| disk.state().on_open.is_empty()).await;
    // The last attempt to open hangs. Every call returns nevertheless.
    let read = storage.scan(SPACE, KeyRange::all(), 1).await;
    assert!(matches!(read, Err(StorageError::Unavailable { .. })), "{read:?}");
    let commit = storage.commit(put("a", "v"), Durability::Durable).await;
    assert!(matches!(commit, Err(StorageError::Unavailable { .. })), "{commit:?}");
    let sync = storage.sync().await;
    assert!(matches!(sync, Err(StorageError::Unavailable { .. })), "{sync:?}");
    drop(release);
    commit_when_up(&storage, put("b", "v")).await.unwrap();
    assert_eq!(value(&storage, "b").await.unwrap(), "v");
}

#[tokio::test]
async fn failed_sync_returns_error_and_reopens_engine() {
    for fault in [EngineFault::Fail, EngineFault::Panic] {
        let disk = FakeDisk::default();
        let storage = open(&disk).await;
        disk.state().on_sync.push_back(fault);
        assert!(matches!(storage.sync().await, Err(StorageError::Backend { .. })));
        commit_when_up(&storage, put("a", "v")).await.unwrap();
        storage.sync().await.unwrap();
        assert_eq!(disk.state().opened, 2);
    }
}

#[tokio::test]
async fn panic_in_reader_returns_error_and_reopens_engine() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    disk.state().on_read.push_back(EngineFault::Panic);
    assert!(storage.get(SPACE, &[key("a")]).await.is_err());
    until(|| disk.state().opened == 2).await;
    commit_when_up(&storage, put("a", "v")).await.unwrap();
    // The writer's own reader, which checks conditions.
    disk.state().on_read.push_back(EngineFault::Panic);
    let mut batch = put("b", "v");
    batch.require_absent(SPACE, key("b"));
    let outcome = storage.commit(batch, Durability::Buffered).await;
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "nothing was applied: {outcome:?}");
    commit_when_up(&storage, put("c", "v")).await.unwrap();
    // A read that fails without a panic does not reopen the engine.
    disk.state().on_read.push_back(EngineFault::Fail);
    assert!(matches!(storage.get(SPACE, &[key("a")]).await, Err(StorageError::Backend { .. })));
    assert_eq!(value(&storage, "a").await.unwrap(), "v");
    assert_eq!(disk.state().opened, 3);
}

#[tokio::test]
async fn broken_reader_reopens_engine() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    commit_when_up(&storage, put("a", "v")).await.unwrap();
    for (opened, asked) in ["get", "scan", "condition"].into_iter().enumerate() {
        disk.state().on_read.push_back(EngineFault::Break);
        let outcome = match asked {
            "get" => storage.get(SPACE, &[key("a")]).await.map(drop),
            "scan" => storage.scan(SPACE, KeyRange::all(), 1).await.map(drop),
            _ => {
                let mut batch = put("b", "v");
                batch.require_absent(SPACE, key("b"));
                storage.commit(batch, Durability::Buffered).await
            }
        };
        assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{asked}: {outcome:?}");
        until(|| disk.state().opened == opened + 2).await;
        commit_when_up(&storage, put("c", "v")).await.unwrap();
        assert_eq!(value(&storage, "a").await.unwrap(), "v");
    }
}

#[tokio::test]
async fn reader_of_earlier_opening_does_not_reopen_engine() {
    let disk = FakeDisk::default();
    let opener = disk.clone();
    let mut settings = quick();
    settings.readers = 1;
    settings.close_timeout = Duration::from_millis(1);
    let storage = Embedded::open(settings, move || opener.open()).await.unwrap();
    // Its second key is read after the engine is reopened.
    let (release, wait) = channel();
    disk.state().on_read.push_back(EngineFault::Block(wait));
    let asked = [key("a"), key("b")];
    let mut late = storage.get(SPACE, &asked);
    assert!(late.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    until(|| disk.state().on_read.is_empty()).await;
    disk.state().on_apply.push_back(EngineFault::Uncertain { applied: false });
    storage.commit(put("a", "v"), Durability::Buffered).await.unwrap_err();
    commit_when_up(&storage, put("a", "v")).await.unwrap();
    disk.state().on_read.push_back(EngineFault::Break);
    drop(release);
    assert!(matches!(late.await, Err(StorageError::Unavailable { .. })));
    // The only reader thread reports the failure before it serves the next read, so the commit is queued behind the report.
    disk.state().broken = false;
    assert_eq!(value(&storage, "a").await.unwrap(), "v");
    storage.commit(put("b", "v"), Durability::Buffered).await.unwrap();
    assert_eq!(disk.state().opened, 2);
}

#[tokio::test]
async fn reads_continue_during_commit() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    storage.commit(put("a", "v"), Durability::Buffered).await.unwrap();
    let (release, held) = hold(&disk, &storage).await;
    assert_eq!(value(&storage, "a").await.unwrap(), "v");
    assert!(value(&storage, "held").await.is_none());
    drop(release);
    held.await.unwrap();
    assert!(value(&storage, "held").await.is_some());
}

#[tokio::test]
async fn commit_dropped_before_queueing_is_not_applied() {
    let disk = FakeDisk::default();
    let (mut few, mut small) = (quick(), quick());
    few.queued_commits = 2;
    small.queued_bytes = 2048;
    for settings in [few, small] {
        let opener = disk.clone();
        let storage = Embedded::open(settings, move || opener.open()).await.unwrap();
        let (release, held) = hold(&disk, &storage).await;
        let queued = queue(&storage, put("queued", "v"), Durability::Buffered);
        let waits = queue(&storage, put("dropped", "v"), Durability::Buffered);
        drop(waits);
        let waits = queue(&storage, put("waits", "v"), Durability::Buffered);
        drop(release);
        for commit in [held, queued, waits] {
            commit.await.unwrap();
        }
        storage.sync().await.unwrap();
        assert!(value(&storage, "waits").await.is_some());
        assert!(value(&storage, "dropped").await.is_none());
        storage.close().await.unwrap();
    }
}

#[tokio::test]
async fn close_returns_when_engine_hangs_or_is_down() {
    let disk = FakeDisk::default();
    let opener = disk.clone();
    let mut settings = quick();
    settings.close_timeout = Duration::from_millis(50);
    let storage = Embedded::open(settings, move || opener.open()).await.unwrap();
    let (release, wait) = channel();
    disk.state().on_close.push_back(EngineFault::Block(wait));
    assert!(matches!(storage.close().await, Err(StorageError::Backend { .. })));
    storage.close().await.unwrap();
    drop(release);

    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let (release, held) = hold(&disk, &storage).await;
    let waits: Vec<_> = (0..2000).map(|_| queue(&storage, put("a", "v"), Durability::Buffered)).collect();
    let mut close = begin(storage.close());
    drop(release);
    held.await.unwrap();
    // Queued commits are applied; later ones fail with `Closed`.
    for commit in waits {
        assert!(matches!(commit.await, Ok(()) | Err(StorageError::Closed)));
    }
    close.as_mut().await.unwrap();

    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let faults = (0..1000).map(|_| EngineFault::Fail);
    disk.state().on_open.extend(faults);
    disk.state().on_apply.push_back(EngineFault::Uncertain { applied: true });
    let (_hold, wait) = channel();
    disk.state().on_open.push_front(EngineFault::Block(wait));
    let _ = storage.commit(put("a", "v"), Durability::Buffered).await;
    until(|| disk.state().on_open.len() == 1000).await;
    assert!(matches!(storage.close().await, Err(StorageError::Unavailable { .. })));
    assert!(matches!(storage.sync().await, Err(StorageError::Closed)));
}

#[tokio::test]
async fn open_returns_error_when_engine_fails_or_panics() {
    let disk = FakeDisk::default();
    disk.state().on_open.extend([EngineFault::Fail, EngineFault::Panic]);
    for _ in 0..2 {
        let disk = disk.clone();
        let outcome = Embedded::open(quick(), move || disk.open()).await;
        assert!(matches!(outcome, Err(StorageError::Backend { .. })));
    }
}

#[tokio::test]
async fn drop_closes_engine() {
    let disk = FakeDisk::default();
    drop(open(&disk).await);
    until(|| disk.open().is_ok()).await;
    // The same while it is being opened.
    let (release, wait) = channel();
    disk.state().on_open.push_back(EngineFault::Block(wait));
    let mut opening = Box::pin(open(&disk));
    assert!(matches!(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    drop(opening);
    drop(release);
    until(|| disk.state().on_open.is_empty()).await;
    until(|| disk.open().is_ok()).await;
}
