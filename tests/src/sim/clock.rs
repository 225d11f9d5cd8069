//! The wall clock of a simulation: the time of the paused runtime plus an offset.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use enjambre_core::UnixMillis;
use enjambre_core::runtime::clock::Clock;
use enjambre_testkit::clock::TimerClock;

/// A wall clock with adjustable offset.
#[derive(Debug)]
pub struct JumpingClock {
    timers: TimerClock,
    offset: AtomicI64,
}

impl JumpingClock {
    /// Creates a clock without an offset. Must be called within a runtime.
    pub fn new() -> Self {
        Self { timers: TimerClock::new(), offset: AtomicI64::new(0) }
    }

    /// Moves the clock forward or back.
    pub fn jump(&self, by: Duration, forward: bool) {
        let by = i64::try_from(by.as_millis()).unwrap_or(0);
        self.offset.fetch_add(if forward { by } else { -by }, Ordering::Relaxed);
    }
}

impl Default for JumpingClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for JumpingClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.timers.now().0.saturating_add_signed(self.offset.load(Ordering::Relaxed)))
    }
}
