//! How many requests may be on their way to one provider: pure, one small state per provider.
//!
//! It follows bandwidth and delay. A piece that takes longer than the quickest one took waited somewhere: at the provider,
//! in the network, or here. From that follows how many requests do nothing but wait (Brakmo and Peterson, TCP Vegas,
//! 1995). While they are few, more requests bring more pieces, and the window grows: it doubles at first, then
//! by one with each window of pieces. When they are many, or on a slow line wait for long, it shrinks, and it is halved when
//! the provider is busy. It knows nothing of pieces or of other providers.

use std::time::Duration;

use crate::model::layout::PieceLayout;

/// How far the requests to one provider may run ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSettings {
    /// Requests in flight at the start.
    pub initial: u32,
    /// The most bytes in flight to one provider; at least one piece is always allowed.
    pub max_bytes: u64,
    /// The most requests in flight to one provider.
    pub max_requests: u32,
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self { initial: 8, max_bytes: 8 * 1024 * 1024, max_requests: 48 }
    }
}

/// With fewer requests that wait, the provider or the line may be idle now and then.
const ENOUGH: f64 = 8.0;
/// More that wait are of no use.
const MANY: f64 = 16.0;
/// For how long a request may wait where others wait, too.
const LONG: Duration = Duration::from_secs(1);
/// So many may wait however long it takes.
const LEAST: f64 = 2.0;

/// The window of one provider.
#[derive(Debug, Clone)]
pub struct Window {
    limit: u32,
    most: u32,
    /// Pieces that arrived since it was last changed, and the least time that one of them took.
    arrived: u32,
    took: Option<Duration>,
    /// What a piece takes when nothing is ahead of it.
    quickest: Option<Duration>,
    /// It never had enough yet.
    opening: bool,
}

impl Window {
    /// The window of a provider that was not asked for anything yet, for a file of this layout.
    pub fn new(settings: WindowSettings, layout: PieceLayout) -> Self {
        let by_bytes = settings.max_bytes / u64::from(layout.piece_size());
        let most = u32::try_from(by_bytes).unwrap_or(u32::MAX).clamp(1, settings.max_requests.max(1));
        let limit = settings.initial.clamp(1, most);
        Self { limit, most, arrived: 0, took: None, quickest: None, opening: true }
    }

    /// How many requests may be on their way, at least one.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// A piece that was asked for has arrived, this long after it was asked for where that is known.
    pub fn arrived(&mut self, took: Option<Duration>) {
        if let Some(took) = took {
            self.took = Some(self.took.map_or(took, |before| before.min(took)));
            self.quickest = Some(self.quickest.map_or(took, |before| before.min(took)));
        }
        self.arrived += 1;
        if self.arrived >= self.limit {
            self.adapt();
            self.arrived = 0;
            self.took = None;
        }
    }

    fn adapt(&mut self) {
        let (quickest, took) = (self.quickest.unwrap_or_default(), self.took.unwrap_or_default());
        let waits = took.saturating_sub(quickest);
        let waiting = f64::from(self.limit) * waits.as_secs_f64() / took.as_secs_f64().max(1e-9);
        if waiting > MANY || (waits > LONG && waiting > LEAST) {
            self.limit -= (self.limit / 8).max(1);
            self.opening = false;
        } else if waiting < ENOUGH && waits <= LONG {
            self.limit = if self.opening { self.limit * 2 } else { self.limit + 1 };
        } else {
            self.opening = false;
        }
        self.limit = self.limit.clamp(1, self.most);
    }

    /// The provider has no free slot: ask it for half as much.
    pub fn busy(&mut self) {
        self.limit = (self.limit / 2).max(1);
        self.arrived = 0;
        self.took = None;
        self.opening = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn layout(pieces: u64) -> PieceLayout {
        PieceLayout::new(pieces * 256 * 1024).unwrap()
    }

    fn wide() -> Window {
        Window::new(WindowSettings { initial: 8, max_bytes: 1 << 30, max_requests: 1000 }, layout(1000))
    }

    /// A provider that sends a piece each `service`, over a line that takes `delay`; returns the share of the time that it
    /// was at work in the second half.
    fn run(window: &mut Window, service: Duration, delay: Duration, pieces: u32) -> f64 {
        let (mut now, mut free) = (Duration::ZERO, Duration::ZERO);
        // Asked at, comes at.
        let mut on_way: VecDeque<(Duration, Duration)> = VecDeque::new();
        let mut half = Duration::ZERO;
        for piece in 0..pieces {
            while on_way.len() < window.limit() {
                free = free.max(now + delay / 2) + service;
                on_way.push_back((now, free + delay / 2));
            }
            let (asked, comes) = on_way.pop_front().unwrap();
            now = comes;
            window.arrived(Some(now - asked));
            if piece == pieces / 2 {
                half = now;
            }
        }
        service.as_secs_f64() * f64::from(pieces - pieces / 2) / (now - half).as_secs_f64()
    }

    #[test]
    fn it_grows_until_the_line_is_full_and_not_much_further() {
        for (service, delay) in [(1, 1), (1, 20), (1, 100), (10, 1), (10, 300)] {
            let mut window = wide();
            let (service, delay) = (Duration::from_millis(service), Duration::from_millis(delay));
            let busy = run(&mut window, service, delay, 4000);
            let product = delay.as_secs_f64() / service.as_secs_f64() + 1.0;
            assert!(busy > 0.97, "{service:?} {delay:?}: at work for {busy} of the time");
            let waiting = window.limit() as f64 - product;
            assert!(waiting < MANY + 4.0, "{service:?} {delay:?}: {waiting} wait");
        }
    }

    #[test]
    fn on_a_slow_line_few_wait_but_some() {
        let mut window = wide();
        let busy = run(&mut window, Duration::from_secs(2), Duration::from_millis(50), 200);
        assert!(busy > 0.99 && (2..=5).contains(&window.limit()), "{busy} {}", window.limit());
    }

    #[test]
    fn it_follows_when_the_provider_becomes_slower_and_faster_again() {
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
    fn busy_halves_it() {
        let mut window = wide();
        window.busy();
        assert_eq!(window.limit(), 4);
        for _ in 0..4 {
            window.arrived(None);
        }
        assert_eq!(window.limit(), 5, "from then on it grows by one");
    }

    #[test]
    fn it_is_never_closed_and_never_past_its_most() {
        let settings = WindowSettings { initial: 3, max_bytes: 1, max_requests: 48 };
        let mut window = Window::new(settings, layout(10));
        window.arrived(None);
        assert_eq!(window.limit(), 1);
        window.busy();
        assert_eq!(window.limit(), 1);
    }
}
