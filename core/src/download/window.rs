//! How many requests may be on their way to one provider: pure, one small state per provider.
//!
//! It follows bandwidth and delay. A piece that takes longer than the quickest one took waited somewhere: at the provider,
//! in the network, or here. From that follows how many requests do nothing but wait (Brakmo and Peterson, TCP Vegas,
//! 1995). While they are few, more requests bring more pieces, and the window grows: it doubles at first, then
//! by one with each window of pieces. When they are many, or on a slow line wait for long, it shrinks, and it is halved when
//! the provider is busy. It knows nothing of pieces or of other providers.
//!
//! The way may become longer. So what the quickest piece took is only believed for a while, and then measured anew with the
//! queue drained for a moment, as BBR does (Cardwell and others, "BBR: Congestion-Based Congestion Control", 2016, on RTprop and
//! ProbeRTT): without that the queue would be taken for the way.

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
/// For how long it is believed what the quickest piece took, when none comes near to it.
const BELIEVED: Duration = Duration::from_secs(60);
/// And at least for this many times what pieces take now: on a slow line it would be measured all the time.
const BELIEVED_ROUNDS: u32 = 16;

/// The window of one provider.
#[derive(Debug, Clone)]
pub struct Window {
    limit: u32,
    most: u32,
    /// Pieces that arrived since it was last changed, and the least time that one of them took.
    arrived: u32,
    took: Option<Duration>,
    /// What a piece takes when nothing is ahead of it.
    quickest: Option<Quickest>,
    /// It never had enough yet.
    opening: bool,
    probe: Option<Probe>,
}

#[derive(Debug, Clone, Copy)]
struct Quickest {
    took: Duration,
    /// When a piece last took about as little.
    at: Duration,
}

/// While it is measured anew how long the way is.
#[derive(Debug, Clone, Copy)]
struct Probe {
    /// The limit from before.
    limit: u32,
    /// Since when. A piece that was asked for since then had nothing ahead of it.
    since: Duration,
}

impl Window {
    /// The window of a provider that was not asked for anything yet, for a file of this layout.
    pub fn new(settings: WindowSettings, layout: PieceLayout) -> Self {
        let by_bytes = settings.max_bytes / u64::from(layout.piece_size());
        let most = u32::try_from(by_bytes).unwrap_or(u32::MAX).clamp(1, settings.max_requests.max(1));
        let limit = settings.initial.clamp(1, most);
        Self { limit, most, arrived: 0, took: None, quickest: None, opening: true, probe: None }
    }

    /// How many requests may be on their way, at least one.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// A piece that was asked for has arrived, this long after it was asked for where that is known.
    pub fn arrived(&mut self, took: Option<Duration>, now: Duration) {
        if let Some(Probe { limit, since }) = self.probe {
            if let Some(took) = took.filter(|&took| now >= since + took) {
                self.quickest = Some(Quickest { took, at: now });
                self.limit = limit;
                self.probe = None;
            }
            return;
        }
        if let Some(took) = took {
            self.took = Some(self.took.map_or(took, |before| before.min(took)));
            match &mut self.quickest {
                Some(quickest) if took > quickest.took + quickest.took / 8 => {}
                Some(quickest) => *quickest = Quickest { took: took.min(quickest.took), at: now },
                None => self.quickest = Some(Quickest { took, at: now }),
            }
        }
        self.arrived += 1;
        if self.arrived >= self.limit {
            self.adapt(now);
            self.arrived = 0;
            self.took = None;
        }
    }

    fn adapt(&mut self, now: Duration) {
        let quickest = self.quickest.map_or(Duration::ZERO, |quickest| quickest.took);
        let took = self.took.unwrap_or_default();
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
        let believed = BELIEVED.max(took * BELIEVED_ROUNDS);
        if self.limit > 1 && self.quickest.is_some_and(|quickest| now >= quickest.at + believed) {
            self.probe = Some(Probe { limit: self.limit, since: now });
            self.limit = 1;
        }
    }

    /// The provider has no free slot: ask it for half as much.
    pub fn busy(&mut self) {
        let limit = self.probe.take().map_or(self.limit, |probe| probe.limit);
        self.limit = (limit / 2).max(1);
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
        run_from(window, Duration::ZERO, service, delay, pieces).0
    }

    /// As [`run`] from this time on; returns the time as well.
    fn run_from(
        window: &mut Window,
        begin: Duration,
        service: Duration,
        delay: Duration,
        pieces: u32,
    ) -> (f64, Duration) {
        let (mut now, mut free) = (begin, begin);
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
            window.arrived(Some(now - asked), now);
            if piece == pieces / 2 {
                half = now;
            }
        }
        (service.as_secs_f64() * f64::from(pieces - pieces / 2) / (now - half).as_secs_f64(), now)
    }

    #[test]
    fn it_follows_when_the_way_becomes_longer_and_does_not_take_its_own_queue_for_the_way() {
        let mut window = wide();
        let service = Duration::from_millis(2);
        let (short, long) = (Duration::from_millis(10), Duration::from_millis(400));
        let (_, now) = run_from(&mut window, Duration::ZERO, service, short, 2000);
        // Ten minutes of it.
        let (busy, now) = run_from(&mut window, now, service, short, 300_000);
        assert!(busy > 0.97 && window.limit() < 40, "{busy} {}", window.limit());
        let (_, now) = run_from(&mut window, now, service, long, 20_000);
        let (busy, _) = run_from(&mut window, now, service, long, 20_000);
        assert!(busy > 0.95 && window.limit() < 240, "{busy} {}", window.limit());
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
            window.arrived(None, Duration::ZERO);
        }
        assert_eq!(window.limit(), 5, "from then on it grows by one");
    }

    #[test]
    fn it_is_never_closed_and_never_past_its_most() {
        let settings = WindowSettings { initial: 3, max_bytes: 1, max_requests: 48 };
        let mut window = Window::new(settings, layout(10));
        window.arrived(None, Duration::ZERO);
        assert_eq!(window.limit(), 1);
        window.busy();
        assert_eq!(window.limit(), 1);
    }
}
