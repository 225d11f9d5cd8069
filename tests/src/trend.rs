//! Growth of a sampled value over time, such as the memory of a process.
//!
//! The slope is the Theil-Sen estimator, the median of the slopes between all pairs of samples. It ignores outliers, such
//! as a memory peak during a download, and detects a steady leak of any rate.

/// Samples of one value: pairs of time in seconds and value.
#[derive(Debug, Clone, Default)]
pub struct Trend {
    samples: Vec<(f64, f64)>,
}

/// Statistics of the samples since a point in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// The median value.
    pub median: f64,
    /// The maximum value.
    pub max: f64,
    /// The increase from the first to the last sample according to the estimated slope.
    pub increase: f64,
}

/// The maximum number of samples to evaluate, because the number of pairs is quadratic. More samples are thinned out
/// evenly.
const MAX_SAMPLES: usize = 600;

impl Trend {
    /// Adds a sample.
    pub fn push(&mut self, seconds: f64, value: f64) {
        self.samples.push((seconds, value));
    }

    /// Returns the statistics of the samples since a point in time, or `None` for fewer than three samples.
    pub fn since(&self, seconds: f64) -> Option<Growth> {
        let samples: Vec<_> = self.samples.iter().filter(|(at, _)| *at >= seconds).copied().collect();
        let step = samples.len().div_ceil(MAX_SAMPLES).max(1);
        let samples: Vec<_> = samples.into_iter().step_by(step).collect();
        let ([first, .., last], 3..) = (samples.as_slice(), samples.len()) else { return None };
        let mut slopes = Vec::new();
        for (number, (at, value)) in samples.iter().enumerate() {
            for (later, higher) in &samples[number + 1..] {
                if later > at {
                    slopes.push((higher - value) / (later - at));
                }
            }
        }
        let values: Vec<f64> = samples.iter().map(|(_, value)| *value).collect();
        Some(Growth {
            max: values.iter().copied().fold(f64::MIN, f64::max),
            median: median(values)?,
            increase: median(slopes)? * (last.0 - first.0),
        })
    }
}

impl Growth {
    /// Whether the increase is at most `share` of the median, or at most `tolerance`.
    pub fn is_flat(&self, share: f64, tolerance: f64) -> bool {
        self.increase <= (self.median * share).max(tolerance)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(value: impl Fn(u32) -> f64) -> Trend {
        let mut trend = Trend::default();
        (0..100).for_each(|second| trend.push(f64::from(second), value(second)));
        trend
    }

    #[test]
    fn leak_in_noise_is_detected_and_peaks_are_ignored() {
        let sawtooth = |second: u32| 100.0 + f64::from(second % 7);
        let peaks = trend(|second| if second % 10 == 9 { 900.0 } else { sawtooth(second) });
        assert!(peaks.since(50.0).unwrap().is_flat(0.1, 0.0), "{:?}", peaks.since(50.0));
        let leak = trend(|second| sawtooth(second) + f64::from(second));
        let growth = leak.since(50.0).unwrap();
        assert!(!growth.is_flat(0.1, 0.0), "{growth:?}");
        assert!((growth.increase - 49.0).abs() < 8.0, "{growth:?}");
        assert!(growth.is_flat(0.1, 60.0), "increase within the tolerance");
    }

    #[test]
    fn growth_uses_only_samples_since_start_and_needs_three() {
        let start = trend(|second| f64::from(second.min(50)));
        assert!(start.since(51.0).unwrap().is_flat(0.0, 0.0));
        assert!(!start.since(0.0).unwrap().is_flat(0.0, 0.0));
        assert_eq!(start.since(98.0), None);
    }
}
