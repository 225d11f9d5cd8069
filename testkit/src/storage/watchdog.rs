//! Detection of a runtime whose threads are blocked.
//!
//! A timer of the runtime would be blocked as well, so a separate thread checks for a heartbeat of the runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// The number of heartbeats in a timeout.
const BEATS: u32 = 8;

/// Watches the runtime until it is dropped.
pub(super) struct Watchdog {
    beats: Arc<AtomicU64>,
    interval: Duration,
    /// Dropping it ends the thread.
    _watched: Sender<()>,
}

impl Watchdog {
    /// Calls `report` after one to two times `timeout` without a heartbeat.
    pub(super) fn start(timeout: Duration, report: impl FnOnce() + Send + 'static) -> Self {
        let (watched, end) = channel();
        let beats = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&beats);
        let watch = move || {
            let mut before = 0;
            while end.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                let now = seen.load(Ordering::Relaxed);
                if now == before {
                    return report();
                }
                before = now;
            }
        };
        // Without a thread, only blocked runtimes are not detected.
        let _ = std::thread::Builder::new().name("kit-watchdog".to_owned()).spawn(watch);
        Self { beats, interval: timeout / BEATS, _watched: watched }
    }

    /// Runs `work` with a heartbeat.
    pub(super) async fn watch<T>(&self, work: impl Future<Output = T>) -> T {
        let beat = async {
            loop {
                tokio::time::sleep(self.interval).await;
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
