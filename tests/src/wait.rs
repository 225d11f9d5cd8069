//! Polling with a timeout, for conditions without a notification.

use std::thread;
use std::time::{Duration, Instant};

/// The default timeout of a wait. Sufficient for any successful operation on a loaded machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls until `poll` returns a value, and returns that value.
///
/// # Panics
/// Panics after the timeout; the message contains `what`.
#[track_caller]
pub fn wait_until<T>(what: &str, timeout: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(started.elapsed() < timeout, "no result after {timeout:?}: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Polls until the condition is true.
///
/// # Panics
/// Panics after the timeout; the message contains `what`.
#[track_caller]
pub fn wait_for(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    wait_until(what, timeout, || condition().then_some(()));
}
