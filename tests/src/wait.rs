//! The one place where a test waits for something that it is not told of.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that works, even on a loaded machine.
pub const LONG: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(20);

/// Asks until there is an answer, and returns it.
///
/// # Panics
/// When there is none by the deadline; the message says what was waited for.
#[track_caller]
pub fn wait_until<T>(what: &str, deadline: Duration, mut answer: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = answer() {
            return found;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        thread::sleep(PAUSE);
    }
}

/// Asks until the condition holds.
///
/// # Panics
/// When it does not by the deadline; the message says what was waited for.
#[track_caller]
pub fn wait_for(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_until(what, deadline, || condition().then_some(()));
}
