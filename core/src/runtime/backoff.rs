//! Exponential backoff between attempts.

use std::time::Duration;

use rand::RngExt;

/// The delays of a series of attempts. They double from a minimum to a maximum.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// A backoff that starts with `min` and never exceeds `max`.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// Returns the next delay, exactly.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next.min(self.max);
        self.next = self.next.saturating_mul(2).min(self.max);
        delay
    }

    /// Returns the next delay with jitter: between half of it and all of it. Use it against a server that many clients
    /// retry against.
    pub fn next_jittered(&mut self) -> Duration {
        self.next_delay().mul_f64(super::rng().random_range(0.5..=1.0))
    }

    /// Returns the next delay after a failure that followed `uptime` of successful work. The series restarts only if that
    /// was at least the maximum delay: so a resource that fails soon after each restart is not restarted at the minimum
    /// delay forever.
    pub fn next_delay_after(&mut self, uptime: Duration) -> Duration {
        if uptime >= self.max {
            self.reset();
        }
        self.next_delay()
    }

    /// Restarts with the minimum delay.
    pub const fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(MIN, MAX);
        let delays: Vec<u128> = (0..9).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), MIN);
    }

    #[test]
    fn jitter_is_at_most_half_of_the_delay() {
        let mut backoff = Backoff::new(MIN, MAX);
        assert!((MIN / 2..=MIN).contains(&backoff.next_jittered()));
        let delays: Vec<_> = (0..20).map(|_| backoff.next_jittered()).collect();
        assert!(delays[10..].iter().all(|delay| (MAX / 2..=MAX).contains(delay)), "{delays:?}");
    }

    #[test]
    fn uptime_below_the_maximum_does_not_reset() {
        let mut backoff = Backoff::new(MIN, MAX);
        for (uptime, expected) in [(MAX, MIN), (MAX / 2, MIN * 2), (Duration::ZERO, MIN * 4), (MAX, MIN)] {
            assert_eq!(backoff.next_delay_after(uptime), expected, "after {uptime:?}");
        }
    }

    #[test]
    fn maximum_delay_bounds_the_rate_of_restarts() {
        for uptime in [Duration::ZERO, MAX / 3, MAX] {
            let mut backoff = Backoff::new(MIN, MAX);
            let total: Duration = (0..1000).map(|_| uptime + backoff.next_delay_after(uptime)).sum();
            assert!(total >= MAX * 990, "after {uptime:?}: {total:?}");
        }
    }
}
