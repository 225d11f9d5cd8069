//! The time of day in a simulation: it goes with the runtime's timers, and jumps when it is told to.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use enjambre_core::clock::{Clock, TimerClock};

/// A clock that somebody sets wrong.
#[derive(Debug)]
pub struct JumpingClock {
    timers: TimerClock,
    offset: AtomicI64,
}

impl JumpingClock {
    /// A clock that is right so far. To be called within a runtime.
    pub fn new() -> Self {
        Self { timers: TimerClock::new(), offset: AtomicI64::new(0) }
    }

    /// Puts it forward, or back.
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
    fn now_ms(&self) -> u64 {
        self.timers.now_ms().saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }
}
