//! Finds out that a runtime stands still because a call blocks its threads.
//!
//! A timer of that runtime cannot: it stands still as well. So a thread of its own looks whether a beat comes from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How many beats there are in the time that a standstill takes.
const BEATS: u32 = 8;

/// Watches until it is dropped.
pub(super) struct Watchdog {
    beats: Arc<AtomicU64>,
    pause: Duration,
    /// Its end ends the thread.
    _watched: Sender<()>,
}

impl Watchdog {
    /// Calls `report` when nothing has moved for `standstill`, or up to twice as long.
    pub(super) fn start(standstill: Duration, report: impl FnOnce() + Send + 'static) -> Self {
        let (watched, end) = channel();
        let beats = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&beats);
        let watch = move || {
            let mut before = 0;
            while end.recv_timeout(standstill) == Err(RecvTimeoutError::Timeout) {
                let now = seen.load(Ordering::Relaxed);
                if now == before {
                    return report();
                }
                before = now;
            }
        };
        // Without a thread a standstill is not found, and everything else is.
        let _ = std::thread::Builder::new().name("kit-watchdog".to_owned()).spawn(watch);
        Self { beats, pause: standstill / BEATS, _watched: watched }
    }

    /// Works, and beats meanwhile.
    pub(super) async fn over<T>(&self, work: impl Future<Output = T>) -> T {
        let beat = async {
            loop {
                tokio::time::sleep(self.pause).await;
                self.beats.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = beat => never,
        }
    }
}
