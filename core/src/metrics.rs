//! Counters, gauges and histograms that are always on and cost nothing until they are read.
//!
//! Plain atomics instead of the types of a metrics crate: an observation is one or two relaxed additions, without locks and
//! allocations, so that it may be made for each piece; nothing is registered and nothing wakes up; and the crates below HTTP, and
//! plug-ins of others, depend on no exporter. The exporter (`enjambre-http`) reads all values when it is asked for them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The number of buckets of a histogram. Bucket `i` counts durations of at most `2^i` microseconds that exceed the previous
/// bucket; the last one also counts all longer durations, beyond about 6 days.
const BUCKETS: usize = 40;

/// A number of events or bytes, which only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the number.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number of things that exist at the moment, for example open connections.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

/// A counted thing, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Entered<'a>(&'a Gauge);

impl Gauge {
    /// Counts a thing until the returned value is dropped.
    pub fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, Relaxed);
        Entered(self)
    }

    /// Returns the number of things.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// A distribution of durations.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), nanoseconds: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let microseconds = nanoseconds.div_ceil(1000);
        let bucket = microseconds.next_power_of_two().trailing_zeros() as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// Returns the durations so far. One that is recorded concurrently may be included partially.
    pub fn read(&self) -> Durations {
        Durations {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Relaxed)),
            sum: Duration::from_nanos(self.nanoseconds.load(Relaxed)),
        }
    }
}

/// The durations of a [`Histogram`] at one time.
#[derive(Debug, Clone, Copy)]
pub struct Durations {
    buckets: [u64; BUCKETS],
    /// The sum of all durations.
    pub sum: Duration,
}

impl Durations {
    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the number of durations of at most `2^exponent` microseconds.
    pub fn count_up_to(&self, exponent: u32) -> u64 {
        self.buckets.iter().take(exponent as usize + 1).sum()
    }

    /// Returns the quantile `share`, from 0 to 1, as the upper bound of its bucket: at most twice the value. Zero if there
    /// are no durations.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(Duration::ZERO, |bucket| Duration::from_micros(1 << bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_buckets_with_inclusive_bounds() {
        let histogram = Histogram::default();
        for nanoseconds in [0, 1, 1000, 1001, 2000, 2001, 100_000, 1_000_000_000] {
            histogram.record(Duration::from_nanos(nanoseconds));
        }
        let durations = histogram.read();
        assert_eq!(
            [0, 1, 2, 6, 7, 19, 20].map(|exponent| durations.count_up_to(exponent)),
            [3, 5, 6, 6, 7, 7, 8]
        );
        assert_eq!(durations.sum, Duration::from_nanos(1_000_106_003));
        histogram.record(Duration::MAX);
        assert_eq!((histogram.read().count(), histogram.read().count_up_to(38)), (9, 8));
    }

    #[test]
    fn quantile_is_upper_bound_of_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), Duration::ZERO);
        for microseconds in [1, 1, 2, 3, 100, 1_000_000] {
            histogram.record(Duration::from_micros(microseconds));
        }
        let durations = histogram.read();
        let at = |share| durations.quantile(share).as_micros();
        assert_eq!([0.0, 0.3, 0.5, 0.6, 0.8, 1.0].map(at), [1, 1, 2, 4, 128, 1 << 20]);
    }

    #[test]
    fn gauge_counts_what_is_not_dropped() {
        let gauge = Gauge::default();
        let (one, two) = (gauge.enter(), gauge.enter());
        assert_eq!(gauge.get(), 2);
        drop((one, two));
        assert_eq!(gauge.get(), 0);
    }
}
