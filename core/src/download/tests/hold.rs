//! What holds a download up: how long it is waited for, and what is told of it.

use std::cell::Cell;

use tokio::time::Instant;

use super::super::hold::{Hold, with_room};
use super::super::progress::Phase;
use super::super::wanted::Parts;
use super::*;
use crate::library::error::LibraryError;
use crate::storage::error::StorageError;

const PATIENCE: Duration = Duration::from_secs(60);

fn full() -> LibraryError {
    LibraryError::Full { source: "no room".into() }
}

fn away() -> LibraryError {
    LibraryError::Storage(StorageError::Unavailable { reason: "it is being reopened".to_owned() })
}

async fn parts() -> Arc<Parts> {
    let settings = DownloadSettings { patience: PATIENCE, ..DownloadSettings::default() };
    let node = World::new(MIB).node("reader", Manner::Honest, settings).await;
    Arc::clone(&node.downloader.parts)
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_waited_for_as_long_as_it_takes_and_the_progress_says_so() {
    let parts = parts().await;
    let (progress, mut seen) = watch::channel(Progress { phase: Phase::Fetching, ..Progress::default() });
    let begun = Instant::now();
    let attempts = Cell::new(0);
    let attempt = || {
        attempts.set(attempts.get() + 1);
        if attempts.get() > 1 {
            assert_eq!(progress.borrow().phase, Phase::DiskFull);
        }
        let full_until = begun + 10 * PATIENCE;
        std::future::ready(if Instant::now() < full_until { Err(full()) } else { Ok("done") })
    };
    assert_eq!(with_room(&parts, &progress, attempt).await.unwrap(), "done");
    assert_eq!(seen.borrow_and_update().phase, Phase::Fetching, "as before");
    // It is looked at now and then, and not all the time.
    assert!((100..1000).contains(&attempts.get()), "{} attempts", attempts.get());
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_by_itself_is_waited_for_as_long_as_for_a_provider() {
    let parts = parts().await;
    let (progress, _seen) = watch::channel(Progress { phase: Phase::Fetching, ..Progress::default() });
    let begun = Instant::now();
    let attempt = || {
        assert_eq!(progress.borrow().phase, Phase::Fetching, "the disk is not full");
        std::future::ready(Err::<(), _>(away()))
    };
    let error = with_room(&parts, &progress, attempt).await.unwrap_err();
    assert!(matches!(error, LibraryError::Storage(StorageError::Unavailable { .. })), "{error}");
    let took = begun.elapsed();
    assert!(took >= PATIENCE && took < 2 * PATIENCE, "{took:?}");

    let begun = Instant::now();
    let closed = || std::future::ready(Err::<(), _>(LibraryError::Closed));
    assert!(matches!(with_room(&parts, &progress, closed).await, Err(LibraryError::Closed)));
    assert_eq!(begun.elapsed(), Duration::ZERO, "waiting makes no sense");
}

#[tokio::test(start_paused = true)]
async fn room_that_came_back_begins_a_new_wait() {
    let parts = parts().await;
    let first = Hold::after(None, away(), &parts).unwrap();
    assert!(!first.full && first.until > Instant::now());
    tokio::time::advance(PATIENCE).await;
    assert!(Hold::after(Some(first), away(), &parts).is_err());
    // In between the disk was full, for however long.
    let second = Hold::after(Some(first), full(), &parts).unwrap();
    tokio::time::advance(PATIENCE).await;
    let second = Hold::after(Some(second), full(), &parts).unwrap();
    assert!(second.full);
    assert!(Hold::after(Some(second), away(), &parts).is_ok());
}
