//! Rate limiting with the generic cell rate algorithm (GCRA, ITU-T I.371).
//!
//! The state of a limiter is a single time stamp, which the caller stores.

/// A rate limit: a burst, and a refill interval.
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {
    /// The maximum number of permits available at once.
    pub burst: u64,
    /// The time in milliseconds after which one permit is refilled.
    pub interval: u64,
}

impl RateLimit {
    /// Takes a permit. `full_at` is the time at which all permits are available again.
    ///
    /// Returns the new `full_at`, which the caller stores in either case, and, if no permit is available, the number of
    /// milliseconds until one is.
    pub fn take(self, full_at: u64, now: u64) -> (u64, Result<(), u64>) {
        let latest = now.saturating_add(self.burst.saturating_mul(self.interval));
        // A clock that was set back must not exhaust the limit for the difference.
        let from = full_at.clamp(now, latest);
        let taken = from.saturating_add(self.interval);
        match taken.saturating_sub(latest) {
            0 => (taken, Ok(())),
            wait => (from, Err(wait)),
        }
    }
}
