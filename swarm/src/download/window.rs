//! The number of requests in flight to one provider: pure, one small state per provider.
//!
//! The window follows bandwidth and delay. A piece that takes longer than the fastest one was queued: at the provider, in
//! the network or locally. The queueing time determines the number of requests that are only waiting (Brakmo and Peterson:
//! "TCP Vegas", 1995). While they are few, more requests increase the throughput, and the window grows: first it doubles,
//! then it grows by one per window of pieces. If many are waiting, or on a slow line for a long time, the window shrinks.
//! It is halved when the provider is busy. A window does not depend on pieces or other providers.
//!
//! The path may become longer. So the minimum latency is only valid for a while, and then measured again while the queue
//! is drained, as BBR does (Cardwell and others: "BBR: Congestion-Based Congestion Control", 2016, on RTprop and ProbeRTT).
//! Otherwise the queueing time would be attributed to the path.

use std::time::Duration;

use enjambre_core::PieceLayout;

const INITIAL: u32 = 8;
/// Maximum number of bytes in flight to one provider; at least one piece is always allowed.
const MAX_BYTES: u32 = 8 * 1024 * 1024;
/// Maximum number of requests in flight to one provider.
const MAX_REQUESTS: u32 = 48;
/// With fewer queued requests the provider or the line may become idle.
const MIN_QUEUED: f64 = 8.0;
/// More queued requests do not increase the throughput.
const MAX_QUEUED: f64 = 16.0;
/// Maximum queueing time if more than [`ALWAYS_QUEUED`] requests are queued.
const MAX_QUEUEING_TIME: Duration = Duration::from_secs(1);
/// Number of requests that may be queued for any time.
const ALWAYS_QUEUED: f64 = 2.0;
/// How long the minimum latency is valid without a piece of similar latency.
const MIN_LATENCY_VALIDITY: Duration = Duration::from_secs(60);
/// The validity is at least this multiple of the current latency. Otherwise a slow line would be measured all the time.
const MIN_LATENCY_ROUNDS: u32 = 16;

/// The window of one provider.
#[derive(Debug, Clone)]
pub struct Window {
    limit: u32,
    max: u32,
    /// Pieces since the last change of the limit, and their minimum latency.
    arrived: u32,
    latency: Option<Duration>,
    /// Latency of a piece without queueing.
    min_latency: Option<MinLatency>,
    /// Whether the window doubles, as in TCP's slow start.
    slow_start: bool,
    probe: Option<Probe>,
}

#[derive(Debug, Clone, Copy)]
struct MinLatency {
    latency: Duration,
    /// When a piece last had a similar latency.
    at: Duration,
}

/// A measurement of the path.
#[derive(Debug, Clone, Copy)]
struct Probe {
    /// The limit before the measurement.
    limit: u32,
    /// The start. A piece that was requested later was not queued.
    since: Duration,
}

impl Window {
    /// Creates the window of a new provider for a file of this layout.
    pub fn new(layout: PieceLayout) -> Self {
        Self::with_max((MAX_BYTES / layout.piece_size()).clamp(1, MAX_REQUESTS))
    }

    fn with_max(max: u32) -> Self {
        let limit = INITIAL.min(max);
        Self { limit, max, arrived: 0, latency: None, min_latency: None, slow_start: true, probe: None }
    }

    /// Returns the maximum number of requests in flight, at least one.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Records a piece, with the time since its request if known.
    pub fn arrived(&mut self, latency: Option<Duration>, now: Duration) {
        if let Some(Probe { limit, since }) = self.probe {
            if let Some(latency) = latency.filter(|&latency| now >= since + latency) {
                self.min_latency = Some(MinLatency { latency, at: now });
                self.limit = limit;
                self.probe = None;
            }
            return;
        }
        if let Some(latency) = latency {
            self.latency = Some(self.latency.map_or(latency, |before| before.min(latency)));
            match &mut self.min_latency {
                Some(min) if latency > min.latency + min.latency / 8 => {}
                Some(min) => *min = MinLatency { latency: latency.min(min.latency), at: now },
                None => self.min_latency = Some(MinLatency { latency, at: now }),
            }
        }
        self.arrived += 1;
        if self.arrived >= self.limit {
            self.adapt(now);
            self.arrived = 0;
            self.latency = None;
        }
    }

    fn adapt(&mut self, now: Duration) {
        let min_latency = self.min_latency.map_or(Duration::ZERO, |min| min.latency);
        let latency = self.latency.unwrap_or_default();
        let queueing = latency.saturating_sub(min_latency);
        let queued = f64::from(self.limit) * queueing.as_secs_f64() / latency.as_secs_f64().max(1e-9);
        let is_long = queueing > MAX_QUEUEING_TIME;
        if queued > MAX_QUEUED || (is_long && queued > ALWAYS_QUEUED) {
            self.limit -= (self.limit / 8).max(1);
            self.slow_start = false;
        } else if queued < MIN_QUEUED && !is_long {
            self.limit = if self.slow_start { self.limit * 2 } else { self.limit + 1 };
        } else {
            self.slow_start = false;
        }
        self.limit = self.limit.clamp(1, self.max);
        let validity = MIN_LATENCY_VALIDITY.max(latency * MIN_LATENCY_ROUNDS);
        if self.limit > 1 && self.min_latency.is_some_and(|min| now >= min.at + validity) {
            self.probe = Some(Probe { limit: self.limit, since: now });
            self.limit = 1;
        }
    }

    /// Halves the window of a provider without a free slot.
    pub fn busy(&mut self) {
        let limit = self.probe.take().map_or(self.limit, |probe| probe.limit);
        self.limit = (limit / 2).max(1);
        self.arrived = 0;
        self.latency = None;
        self.slow_start = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn wide() -> Window {
        Window::with_max(1000)
    }

    /// Simulates a provider that sends a piece each `service` over a line with a round trip of `delay`. Returns its
    /// utilization in the second half.
    fn run(window: &mut Window, service: Duration, delay: Duration, pieces: u32) -> f64 {
        run_from(window, Duration::ZERO, service, delay, pieces).0
    }

    /// As [`run`], from this time on. Also returns the time at the end.
    fn run_from(
        window: &mut Window,
        begin: Duration,
        service: Duration,
        delay: Duration,
        pieces: u32,
    ) -> (f64, Duration) {
        let (mut now, mut free) = (begin, begin);
        // Request and arrival times.
        let mut in_flight: VecDeque<(Duration, Duration)> = VecDeque::new();
        let mut half = Duration::ZERO;
        for piece in 0..pieces {
            while in_flight.len() < window.limit() {
                free = free.max(now + delay / 2) + service;
                in_flight.push_back((now, free + delay / 2));
            }
            let (requested, arrival) = in_flight.pop_front().unwrap();
            now = arrival;
            window.arrived(Some(now - requested), now);
            if piece == pieces / 2 {
                half = now;
            }
        }
        (service.as_secs_f64() * f64::from(pieces - pieces / 2) / (now - half).as_secs_f64(), now)
    }

    #[test]
    fn window_follows_longer_path_without_counting_its_queue() {
        let mut window = wide();
        let service = Duration::from_millis(2);
        let (short, long) = (Duration::from_millis(10), Duration::from_millis(400));
        let (_, now) = run_from(&mut window, Duration::ZERO, service, short, 2000);
        // Ten minutes.
        let (busy, now) = run_from(&mut window, now, service, short, 300_000);
        assert!(busy > 0.97 && window.limit() < 40, "{busy} {}", window.limit());
        let (_, now) = run_from(&mut window, now, service, long, 20_000);
        let (busy, _) = run_from(&mut window, now, service, long, 20_000);
        assert!(busy > 0.95 && window.limit() < 240, "{busy} {}", window.limit());
    }

    #[test]
    fn window_grows_until_line_is_full() {
        for (service, delay) in [(1, 1), (1, 20), (1, 100), (10, 1), (10, 300)] {
            let mut window = wide();
            let (service, delay) = (Duration::from_millis(service), Duration::from_millis(delay));
            let busy = run(&mut window, service, delay, 4000);
            let product = delay.as_secs_f64() / service.as_secs_f64() + 1.0;
            assert!(busy > 0.97, "{service:?} {delay:?}: utilization {busy}");
            let queued = window.limit() as f64 - product;
            assert!(queued < MAX_QUEUED + 4.0, "{service:?} {delay:?}: {queued} are queued");
        }
    }

    #[test]
    fn slow_line_keeps_few_requests_queued() {
        let mut window = wide();
        let busy = run(&mut window, Duration::from_secs(2), Duration::from_millis(50), 200);
        assert!(busy > 0.99 && (2..=5).contains(&window.limit()), "{busy} {}", window.limit());
    }

    #[test]
    fn window_follows_changes_of_provider_speed() {
        let mut window = wide();
        let delay = Duration::from_millis(50);
        run(&mut window, Duration::from_millis(1), delay, 2000);
        let fast = window.limit();
        assert!(run(&mut window, Duration::from_millis(50), delay, 2000) > 0.97);
        let slow = window.limit();
        assert!(run(&mut window, Duration::from_millis(1), delay, 8000) > 0.97);
        assert!(fast > 2 * slow && window.limit() > 2 * slow, "{fast} {slow} {}", window.limit());
    }

    #[test]
    fn busy_provider_halves_window() {
        let mut window = wide();
        window.busy();
        assert_eq!(window.limit(), 4);
        for _ in 0..4 {
            window.arrived(None, Duration::ZERO);
        }
        assert_eq!(window.limit(), 5, "no slow start after busy");
    }

    #[test]
    fn limit_stays_within_one_and_maximum() {
        let mut window = Window::with_max(1);
        window.arrived(None, Duration::ZERO);
        assert_eq!(window.limit(), 1);
        window.busy();
        assert_eq!(window.limit(), 1);
    }
}
