//! Whether a figure that was sampled over time grows.
//!
//! The slope is that of Theil and Sen, the median of the slopes between all pairs of samples: a few samples far off, such
//! as a peak during a download, change nothing, and a steady leak is seen however small the steps are.

/// Samples of one figure: when, in seconds, and what.
#[derive(Debug, Clone, Default)]
pub struct Trend {
    samples: Vec<(f64, f64)>,
}

/// What came of the samples from some moment on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// The median.
    pub median: f64,
    /// The largest.
    pub most: f64,
    /// By how much it grew from the first sample to the last, along the slope.
    pub grown: f64,
}

/// With more samples than this only every so many are taken: the pairs are their square.
const MOST_SAMPLES: usize = 600;

impl Trend {
    /// Takes a sample.
    pub fn push(&mut self, seconds: f64, value: f64) {
        self.samples.push((seconds, value));
    }

    /// What came of the samples since a moment; none with less than three of them.
    pub fn since(&self, seconds: f64) -> Option<Growth> {
        let samples: Vec<_> = self.samples.iter().filter(|(at, _)| *at >= seconds).copied().collect();
        let step = samples.len().div_ceil(MOST_SAMPLES).max(1);
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
            most: values.iter().copied().fold(f64::MIN, f64::max),
            median: median(values)?,
            grown: median(slopes)? * (last.0 - first.0),
        })
    }
}

impl Growth {
    /// Whether it grew by less than this share of the median, or by less than what counts as nothing.
    pub fn is_flat(&self, share: f64, nothing: f64) -> bool {
        self.grown <= (self.median * share).max(nothing)
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
    fn a_leak_is_seen_through_a_saw_and_peaks_are_not_one() {
        let saw = |second: u32| 100.0 + f64::from(second % 7);
        let peaks = trend(|second| if second % 10 == 9 { 900.0 } else { saw(second) });
        assert!(peaks.since(50.0).unwrap().is_flat(0.1, 0.0), "{:?}", peaks.since(50.0));
        let leak = trend(|second| saw(second) + f64::from(second));
        let growth = leak.since(50.0).unwrap();
        assert!(!growth.is_flat(0.1, 0.0), "{growth:?}");
        assert!((growth.grown - 49.0).abs() < 8.0, "{growth:?}");
        assert!(growth.is_flat(0.1, 60.0), "so little counts as nothing");
    }

    #[test]
    fn what_was_before_is_not_looked_at_and_two_samples_tell_nothing() {
        let start = trend(|second| f64::from(second.min(50)));
        assert!(start.since(51.0).unwrap().is_flat(0.0, 0.0));
        assert!(!start.since(0.0).unwrap().is_flat(0.0, 0.0));
        assert_eq!(start.since(98.0), None);
    }
}
