//! How fast somebody delivers: pure, pieces a second of late.

use std::time::Duration;

/// What came before this long counts for about a third.
const MEMORY: Duration = Duration::from_secs(2);

/// An exponentially weighted rate of arrivals.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    since: Duration,
    last: Duration,
    weight: f64,
}

impl Pace {
    /// Nothing has come yet; counted from `now` on.
    pub fn new(now: Duration) -> Self {
        Self { since: now, last: now, weight: 0.0 }
    }

    /// One more has come.
    pub fn arrived(&mut self, now: Duration) {
        self.weight = self.weight * Self::kept(now.saturating_sub(self.last)) + 1.0;
        self.last = self.last.max(now);
    }

    /// How many come in a second.
    pub fn per_second(&self, now: Duration) -> f64 {
        let weight = self.weight * Self::kept(now.saturating_sub(self.last));
        // As much of the past as there is: else a young one would look slow.
        let seen = 1.0 - Self::kept(now.saturating_sub(self.since));
        weight / (MEMORY.as_secs_f64() * seen.max(0.02))
    }

    /// For how long it was watched.
    pub fn watched(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    fn kept(after: Duration) -> f64 {
        (-after.as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_flow_is_measured_soon_and_a_standstill_too() {
        let at = |millis| Duration::from_millis(millis);
        let mut pace = Pace::new(at(1000));
        for arrival in 1..=100 {
            pace.arrived(at(1000 + arrival * 20));
            let rate = pace.per_second(at(1000 + arrival * 20));
            assert!(arrival < 10 || (48.0..60.0).contains(&rate), "{rate} after {arrival}");
        }
        assert!(pace.per_second(at(20_000)) < 0.1);
    }
}
