//! A measurement of `enjambre storage bench`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::cli::output::rate;

#[derive(Debug, Serialize)]
pub(super) struct Measurement {
    name: &'static str,
    /// Number of concurrent operations.
    concurrency: u64,
    operations: u64,
    seconds: f64,
    operations_per_second: f64,
    /// For content only.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<f64>,
    #[serde(flatten)]
    latency: Option<Latency>,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50_microseconds: f64,
    p99_microseconds: f64,
}

impl Measurement {
    pub(super) fn new(name: &'static str, concurrency: u64, operations: u64, took: Duration) -> Self {
        let seconds = took.as_secs_f64().max(1e-9);
        let operations_per_second = operations as f64 / seconds;
        Self {
            name,
            concurrency,
            operations,
            seconds,
            operations_per_second,
            bytes_per_second: None,
            latency: None,
        }
    }

    pub(super) fn with_latencies(self, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        let at = |part: f64| {
            let index = (latencies.len() as f64 * part).ceil() as usize;
            latencies.get(index.saturating_sub(1)).map(|latency| latency.as_secs_f64() * 1e6)
        };
        let latency = at(0.5).zip(at(0.99));
        let latency = latency
            .map(|(p50_microseconds, p99_microseconds)| Latency { p50_microseconds, p99_microseconds });
        Self { latency, ..self }
    }

    /// Adds the number of bytes that all operations transferred.
    pub(super) fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes_per_second: Some(bytes as f64 / self.seconds), ..self }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.concurrency {
            1 => self.name.replace('_', " "),
            concurrency => format!("{}, {concurrency} concurrent", self.name.replace('_', " ")),
        };
        write!(f, "{name:<32}")?;
        match self.bytes_per_second {
            Some(bytes) => write!(f, " {:>12}", rate(bytes as u64, 1.0))?,
            None => write!(f, " {:>10.0} /s", self.operations_per_second)?,
        }
        match &self.latency {
            Some(Latency { p50_microseconds, p99_microseconds }) => write!(
                f,
                "   p50 {:>8.3} ms   p99 {:>8.3} ms",
                p50_microseconds / 1e3,
                p99_microseconds / 1e3
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_match_the_latencies() {
        let measured = |latencies: Vec<Duration>| {
            let of = Measurement::new("x", 1, latencies.len() as u64, Duration::from_secs(2));
            of.with_latencies(latencies)
        };
        let hundred = measured((1..=100).rev().map(Duration::from_micros).collect());
        let latency = hundred.latency.as_ref().unwrap();
        assert_eq!((latency.p50_microseconds.round(), latency.p99_microseconds.round()), (50.0, 99.0));
        assert!((hundred.operations_per_second - 50.0).abs() < 1e-9);
        assert!(measured(Vec::new()).latency.is_none());
    }
}
