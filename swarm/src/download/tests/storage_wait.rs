//! Retries of library operations, and their progress.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::world::{Behavior, MIB, World};
use crate::download::context::{DownloadContext, StorageWait, retry_storage};
use crate::download::request::{Phase, Progress};
use crate::download::settings::DownloadSettings;
use crate::library::error::LibraryError;
use enjambre_core::StorageError;

const TIMEOUT: Duration = Duration::from_secs(60);

fn full() -> LibraryError {
    LibraryError::Full("disk full".into())
}

fn unavailable() -> LibraryError {
    LibraryError::Storage(StorageError::Unavailable { reason: "the database is being reopened".to_owned() })
}

async fn context() -> Arc<DownloadContext> {
    let settings = DownloadSettings { provider_timeout: TIMEOUT, ..DownloadSettings::default() };
    let node = World::new(MIB).node("reader", Behavior::Honest, settings).await;
    Arc::clone(&node.downloader.context)
}

#[tokio::test(start_paused = true)]
async fn full_disk_is_retried_without_limit_and_reported() {
    let context = context().await;
    let (progress, mut updates) = watch::channel(Progress { phase: Phase::Fetching, ..Progress::default() });
    let start = Instant::now();
    let attempts = Cell::new(0);
    let attempt = || {
        attempts.set(attempts.get() + 1);
        if attempts.get() > 1 {
            assert_eq!(progress.borrow().phase, Phase::DiskFull);
        }
        let full_until = start + 10 * TIMEOUT;
        std::future::ready(if Instant::now() < full_until { Err(full()) } else { Ok("done") })
    };
    assert_eq!(retry_storage(&context, &progress, attempt).await.unwrap(), "done");
    assert_eq!(updates.borrow_and_update().phase, Phase::Fetching, "restored");
    // At a moderate rate.
    assert!((100..1000).contains(&attempts.get()), "{} attempts", attempts.get());
}

#[tokio::test(start_paused = true)]
async fn temporary_error_is_retried_until_timeout() {
    let context = context().await;
    let (progress, _updates) = watch::channel(Progress { phase: Phase::Fetching, ..Progress::default() });
    let start = Instant::now();
    let attempt = || {
        assert_eq!(progress.borrow().phase, Phase::Fetching, "the disk is not full");
        std::future::ready(Err::<(), _>(unavailable()))
    };
    let error = retry_storage(&context, &progress, attempt).await.unwrap_err();
    assert!(matches!(error, LibraryError::Storage(StorageError::Unavailable { .. })), "{error}");
    let took = start.elapsed();
    assert!(took >= TIMEOUT && took < 2 * TIMEOUT, "{took:?}");

    let start = Instant::now();
    let closed = || std::future::ready(Err::<(), _>(LibraryError::Closed));
    assert!(matches!(retry_storage(&context, &progress, closed).await, Err(LibraryError::Closed)));
    assert_eq!(start.elapsed(), Duration::ZERO, "a permanent error is not retried");
}

#[tokio::test(start_paused = true)]
async fn change_of_cause_restarts_timeout() {
    let context = context().await;
    let first = StorageWait::after(None, unavailable(), &context).unwrap();
    assert!(!first.full && first.until > Instant::now());
    tokio::time::advance(TIMEOUT).await;
    assert!(StorageWait::after(Some(first), unavailable(), &context).is_err());
    // The disk was full in between.
    let second = StorageWait::after(Some(first), full(), &context).unwrap();
    tokio::time::advance(TIMEOUT).await;
    let second = StorageWait::after(Some(second), full(), &context).unwrap();
    assert!(second.full);
    assert!(StorageWait::after(Some(second), unavailable(), &context).is_ok());
}
