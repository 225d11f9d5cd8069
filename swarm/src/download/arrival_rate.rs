//! The recent delivery rate of a provider, in pieces or bytes per second: pure.

use std::time::Duration;

/// Time constant of the average: older arrivals weigh less than 1/e.
const TIME_CONSTANT: Duration = Duration::from_secs(2);

/// An exponentially weighted rate of arrivals.
#[derive(Debug, Clone, Copy)]
pub struct ArrivalRate {
    since: Duration,
    last: Duration,
    weight: f64,
}

impl ArrivalRate {
    /// A rate that is measured from `now` on.
    pub fn new(now: Duration) -> Self {
        Self { since: now, last: now, weight: 0.0 }
    }

    /// Counts one arrival.
    pub fn arrived(&mut self, now: Duration) {
        self.add(1.0, now);
    }

    /// Counts several arrivals.
    pub fn add(&mut self, count: f64, now: Duration) {
        self.weight = self.weight * Self::decay(now.saturating_sub(self.last)) + count;
        self.last = self.last.max(now);
    }

    /// Returns the arrivals per second.
    pub fn per_second(&self, now: Duration) -> f64 {
        let weight = self.weight * Self::decay(now.saturating_sub(self.last));
        // Normalizes by the observed time; otherwise the rate of a new provider would be too low.
        let seen = 1.0 - Self::decay(now.saturating_sub(self.since));
        weight / (TIME_CONSTANT.as_secs_f64() * seen.max(0.02))
    }

    /// Returns the time since the measurement started.
    pub fn observed(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    fn decay(after: Duration) -> f64 {
        (-after.as_secs_f64() / TIME_CONSTANT.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_converges_fast_and_decays_without_arrivals() {
        let at = |millis| Duration::from_millis(millis);
        let mut rate = ArrivalRate::new(at(1000));
        for arrival in 1..=100 {
            rate.arrived(at(1000 + arrival * 20));
            let measured = rate.per_second(at(1000 + arrival * 20));
            assert!(arrival < 10 || (48.0..60.0).contains(&measured), "{measured} after {arrival}");
        }
        assert!(rate.per_second(at(20_000)) < 0.1);
    }
}
