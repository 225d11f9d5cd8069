//! Where the time comes from, so that tests can make it.

use std::fmt::Debug;
use std::time::SystemTime;

/// The time of day.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC.
    fn now_ms(&self) -> u64;
}

/// The clock of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that goes with the timers of the runtime, so that it stands still where they are paused.
#[cfg(any(test, feature = "testkit"))]
#[derive(Debug, Clone, Copy)]
pub struct TimerClock {
    start: tokio::time::Instant,
}

#[cfg(any(test, feature = "testkit"))]
impl TimerClock {
    /// A clock that shows the year 2033 now. To be called within a runtime.
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now() }
    }
}

#[cfg(any(test, feature = "testkit"))]
impl Default for TimerClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(any(test, feature = "testkit"))]
impl Clock for TimerClock {
    fn now_ms(&self) -> u64 {
        2_000_000_000_000 + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0)
    }
}
