//! The adapter over an engine that fails, panics and waits as it is told.

use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Waker};

use super::fake::{Fake, FakeDisk, REFUSED, Trouble};
use super::*;

const SPACE: Space = Space::new("s");

fn quick() -> EmbeddedSettings {
    EmbeddedSettings {
        name: "fake".to_owned(),
        reopen_first: Duration::from_millis(1),
        reopen_longest: Duration::from_millis(4),
        ..EmbeddedSettings::default()
    }
}

async fn open(disk: &FakeDisk) -> Embedded<Fake> {
    let disk = disk.clone();
    Embedded::open(quick(), move || disk.open()).await.unwrap()
}

fn key(name: &str) -> Key {
    Key::new(name.as_bytes().to_vec()).unwrap()
}

fn put(name: &str, value: &'static str) -> Batch {
    let mut batch = Batch::new();
    batch.put(SPACE, key(name), value);
    batch
}

async fn value(storage: &impl Storage, name: &str) -> Option<Bytes> {
    storage.get(SPACE, &[key(name)]).await.unwrap().remove(0)
}

type Queued<'a> = Pin<Box<dyn Future<Output = Result<(), StorageError>> + Send + 'a>>;

/// Puts the commit into the writer's queue.
fn queue<'a>(storage: &'a Embedded<Fake>, batch: Batch, durability: Durability) -> Queued<'a> {
    begin(storage.commit(batch, durability))
}

fn begin(mut future: Queued<'_>) -> Queued<'_> {
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    future
}

/// Holds the writer in a commit until the sender is dropped.
async fn hold<'a>(disk: &FakeDisk, storage: &'a Embedded<Fake>) -> (Sender<()>, Queued<'a>) {
    let (release, wait) = channel();
    disk.0.lock().on_apply.push_back(Trouble::Wait(wait));
    let held = queue(storage, put("held", "v"), Durability::Buffered);
    until(|| disk.0.lock().on_apply.is_empty()).await;
    (release, held)
}

/// Waits for something that another thread does.
async fn until(reached: impl Fn() -> bool) {
    let all = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("it comes about");
}

/// Commits again and again until the storage is available.
async fn commit_when_up(storage: &Embedded<Fake>, batch: Batch) -> Result<(), StorageError> {
    loop {
        match storage.commit(batch.clone(), Durability::Buffered).await {
            Err(StorageError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            outcome => return outcome,
        }
    }
}

#[tokio::test]
async fn what_is_queued_is_committed_as_one_with_the_strongest_durability() {
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
    assert_eq!(disk.0.lock().applied, [(1, Durability::Buffered), (4, Durability::Durable)]);
    assert_eq!(disk.0.lock().synced, 0, "the durable commit was the sync");
}

#[tokio::test]
async fn a_batch_sees_the_batches_before_it_in_its_group() {
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
    assert_eq!(disk.0.lock().applied.len(), 2, "it was one group");
}

#[tokio::test]
async fn a_refused_group_is_tried_batch_by_batch() {
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
    // In the group it was a conflict, but the batch that it conflicted with was not applied.
    after.await.unwrap();
    sync.await.unwrap();
    assert!(value(&storage, "before").await.is_some());
    assert!(value(&storage, "beside").await.is_none());
    assert_eq!(disk.0.lock().opened, 1, "the engine goes on");
}

#[tokio::test]
async fn an_uncertain_commit_is_indeterminate_for_its_group_and_the_engine_is_reopened() {
    for (trouble, applied) in [
        (Trouble::Uncertain { applied: true }, true),
        (Trouble::Uncertain { applied: false }, false),
        (Trouble::Panic, false),
    ] {
        let disk = FakeDisk::default();
        let storage = open(&disk).await;
        let (release, held) = hold(&disk, &storage).await;
        disk.0.lock().on_apply.push_back(trouble);
        let group = ["a", "b"].map(|name| queue(&storage, put(name, "v"), Durability::Buffered));
        drop(release);
        held.await.unwrap();
        for commit in group {
            assert!(matches!(commit.await, Err(StorageError::Indeterminate { .. })));
        }
        commit_when_up(&storage, put("later", "v")).await.unwrap();
        assert_eq!(value(&storage, "a").await.is_some(), applied);
        assert!(value(&storage, "held").await.is_some());
        assert_eq!(disk.0.lock().opened, 2);
        storage.close().await.unwrap();
    }
}

#[tokio::test]
async fn callers_get_unavailable_until_a_reopen_succeeds() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let (release, wait) = channel();
    let troubles = [Trouble::Fail, Trouble::Panic, Trouble::Fail, Trouble::Wait(wait)];
    disk.0.lock().on_open.extend(troubles);
    disk.0.lock().on_apply.push_back(Trouble::Uncertain { applied: false });
    let outcome = storage.commit(put("a", "v"), Durability::Durable).await;
    assert!(matches!(outcome, Err(StorageError::Indeterminate { .. })));
    let read = storage.get(SPACE, &[key("a")]).await;
    assert!(matches!(read, Err(StorageError::Unavailable { .. })), "{read:?}");
    until(|| disk.0.lock().on_open.is_empty()).await;
    // The last attempt to open hangs now; everyone is answered all the same.
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
async fn a_failed_sync_is_told_and_the_engine_is_reopened() {
    for trouble in [Trouble::Fail, Trouble::Panic] {
        let disk = FakeDisk::default();
        let storage = open(&disk).await;
        disk.0.lock().on_sync.push_back(trouble);
        assert!(matches!(storage.sync().await, Err(StorageError::Backend { .. })));
        commit_when_up(&storage, put("a", "v")).await.unwrap();
        storage.sync().await.unwrap();
        assert_eq!(disk.0.lock().opened, 2);
    }
}

#[tokio::test]
async fn a_panic_while_reading_is_an_error_and_the_engine_is_reopened() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    disk.0.lock().on_read.push_back(Trouble::Panic);
    assert!(storage.get(SPACE, &[key("a")]).await.is_err());
    until(|| disk.0.lock().opened == 2).await;
    commit_when_up(&storage, put("a", "v")).await.unwrap();
    // The reader that checks conditions.
    disk.0.lock().on_read.push_back(Trouble::Panic);
    let mut batch = put("b", "v");
    batch.require_absent(SPACE, key("b"));
    let outcome = storage.commit(batch, Durability::Buffered).await;
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "nothing was applied: {outcome:?}");
    commit_when_up(&storage, put("c", "v")).await.unwrap();
    // A read that fails without a panic is the caller's alone.
    disk.0.lock().on_read.push_back(Trouble::Fail);
    assert!(matches!(storage.get(SPACE, &[key("a")]).await, Err(StorageError::Backend { .. })));
    assert_eq!(value(&storage, "a").await.unwrap(), "v");
    assert_eq!(disk.0.lock().opened, 3);
}

#[tokio::test]
async fn a_broken_engine_is_reopened_whichever_read_says_so() {
    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    commit_when_up(&storage, put("a", "v")).await.unwrap();
    for (opened, asked) in ["get", "scan", "condition"].into_iter().enumerate() {
        disk.0.lock().on_read.push_back(Trouble::Break);
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
        until(|| disk.0.lock().opened == opened + 2).await;
        commit_when_up(&storage, put("c", "v")).await.unwrap();
        assert_eq!(value(&storage, "a").await.unwrap(), "v");
    }
}

#[tokio::test]
async fn a_reader_of_an_earlier_opening_takes_nothing_down() {
    let disk = FakeDisk::default();
    let opener = disk.clone();
    let settings = EmbeddedSettings { readers: 1, close_timeout: Duration::from_millis(1), ..quick() };
    let storage = Embedded::open(settings, move || opener.open()).await.unwrap();
    // Its second key is read when the engine was opened anew.
    let (release, wait) = channel();
    disk.0.lock().on_read.push_back(Trouble::Wait(wait));
    let asked = [key("a"), key("b")];
    let mut late = storage.get(SPACE, &asked);
    assert!(late.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    until(|| disk.0.lock().on_read.is_empty()).await;
    disk.0.lock().on_apply.push_back(Trouble::Uncertain { applied: false });
    storage.commit(put("a", "v"), Durability::Buffered).await.unwrap_err();
    commit_when_up(&storage, put("a", "v")).await.unwrap();
    disk.0.lock().on_read.push_back(Trouble::Break);
    drop(release);
    assert!(matches!(late.await, Err(StorageError::Unavailable { .. })));
    // The only thread that reads has told of it before it serves again, and what is committed comes behind that.
    disk.0.lock().broken = false;
    assert_eq!(value(&storage, "a").await.unwrap(), "v");
    storage.commit(put("b", "v"), Durability::Buffered).await.unwrap();
    assert_eq!(disk.0.lock().opened, 2);
}

#[tokio::test]
async fn reads_go_on_while_the_writer_commits() {
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
async fn a_commit_without_a_place_waits_and_is_not_applied_when_dropped() {
    let disk = FakeDisk::default();
    for settings in [
        EmbeddedSettings { queued_commits: 2, ..quick() },
        EmbeddedSettings { queued_bytes: 2048, ..quick() },
    ] {
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
async fn a_close_ends_though_the_engine_hangs_or_is_down() {
    let disk = FakeDisk::default();
    let opener = disk.clone();
    let settings = EmbeddedSettings { close_timeout: Duration::from_millis(50), ..quick() };
    let storage = Embedded::open(settings, move || opener.open()).await.unwrap();
    let (release, wait) = channel();
    disk.0.lock().on_close.push_back(Trouble::Wait(wait));
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
    // Those with a place are committed, the others hear of the close.
    for commit in waits {
        assert!(matches!(commit.await, Ok(()) | Err(StorageError::Closed)));
    }
    close.as_mut().await.unwrap();

    let disk = FakeDisk::default();
    let storage = open(&disk).await;
    let troubles = (0..1000).map(|_| Trouble::Fail);
    disk.0.lock().on_open.extend(troubles);
    disk.0.lock().on_apply.push_back(Trouble::Uncertain { applied: true });
    let (_hold, wait) = channel();
    disk.0.lock().on_open.push_front(Trouble::Wait(wait));
    let _ = storage.commit(put("a", "v"), Durability::Buffered).await;
    until(|| disk.0.lock().on_open.len() == 1000).await;
    assert!(matches!(storage.close().await, Err(StorageError::Unavailable { .. })));
    assert!(matches!(storage.sync().await, Err(StorageError::Closed)));
}

#[tokio::test]
async fn an_engine_that_cannot_be_opened_or_panics_there_gives_its_error() {
    let disk = FakeDisk::default();
    disk.0.lock().on_open.extend([Trouble::Fail, Trouble::Panic]);
    for _ in 0..2 {
        let disk = disk.clone();
        let outcome = Embedded::open(quick(), move || disk.open()).await;
        assert!(matches!(outcome, Err(StorageError::Backend { .. })));
    }
}

#[tokio::test]
async fn a_dropped_storage_lets_go_of_its_engine() {
    let disk = FakeDisk::default();
    drop(open(&disk).await);
    until(|| disk.open().is_ok()).await;
    // Also where it is dropped in the middle of the opening.
    let (release, wait) = channel();
    disk.0.lock().on_open.push_back(Trouble::Wait(wait));
    let mut opening = Box::pin(open(&disk));
    assert!(matches!(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    drop(opening);
    drop(release);
    until(|| disk.0.lock().on_open.is_empty()).await;
    until(|| disk.open().is_ok()).await;
}
