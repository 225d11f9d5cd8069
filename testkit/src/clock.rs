//! A wall clock for tests with paused time.

use enjambre_core::UnixMillis;
use enjambre_core::runtime::clock::Clock;

/// A clock that follows tokio's time, so that it stops while that is paused.
#[derive(Debug, Clone, Copy)]
pub struct TimerClock {
    start: tokio::time::Instant,
}

impl TimerClock {
    /// A clock that starts in the year 2033.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now() }
    }
}

impl Default for TimerClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TimerClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(2_000_000_000_000) + self.start.elapsed()
    }
}
