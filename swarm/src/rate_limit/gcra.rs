//! Rate limiting with the generic cell rate algorithm (GCRA, ITU-T I.371).
//!
//! The state of a limiter is a single time stamp, which the caller stores.

use std::time::Duration;

use enjambre_core::UnixMillis;

/// A rate limit: a burst, and a refill interval.
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {
    /// The maximum number of permits available at once.
    pub burst: u32,
    /// The time after which one permit is refilled.
    pub interval: Duration,
}

impl RateLimit {
    /// Takes a permit. `full_at` is the time at which all permits are available again.
    ///
    /// Returns the new `full_at`, which the caller stores in either case, and, if no permit is available, the time
    /// until one is.
    pub fn take(self, full_at: UnixMillis, now: UnixMillis) -> (UnixMillis, Result<(), Duration>) {
        let latest = now + self.interval.saturating_mul(self.burst);
        // A clock that was set back must not exhaust the limit for the difference.
        let from = full_at.clamp(now, latest);
        let taken = from + self.interval;
        match taken.saturating_since(latest) {
            Duration::ZERO => (taken, Ok(())),
            wait => (from, Err(wait)),
        }
    }
}
