//! How many requests may be on their way to one provider: pure, one small state per provider.
//!
//! It grows by one with every window of pieces that arrives and is halved when the provider is busy (additive
//! increase, multiplicative decrease, Chiu and Jain 1989). It knows nothing of pieces or of other providers.

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

/// The window of one provider.
#[derive(Debug, Clone)]
pub struct Window {
    limit: u32,
    most: u32,
    arrived: u32,
}

impl Window {
    /// The window of a provider that was not asked for anything yet, for a file of this layout.
    pub fn new(settings: WindowSettings, layout: PieceLayout) -> Self {
        let by_bytes = settings.max_bytes / u64::from(layout.piece_size());
        let most = u32::try_from(by_bytes).unwrap_or(u32::MAX).clamp(1, settings.max_requests.max(1));
        Self { limit: settings.initial.clamp(1, most), most, arrived: 0 }
    }

    /// How many requests may be on their way, at least one.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// A piece that was asked for has arrived.
    pub fn arrived(&mut self) {
        self.arrived += 1;
        if self.arrived >= self.limit {
            self.arrived = 0;
            self.limit = (self.limit + 1).min(self.most);
        }
    }

    /// The provider has no free slot: ask it for half as much.
    pub fn busy(&mut self) {
        self.limit = (self.limit / 2).max(1);
        self.arrived = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(pieces: u64) -> PieceLayout {
        PieceLayout::new(pieces * 256 * 1024).unwrap()
    }

    #[test]
    fn a_window_of_arrivals_makes_it_one_larger_and_busy_halves_it() {
        let mut window = Window::new(WindowSettings::default(), layout(1000));
        assert_eq!(window.limit(), 8);
        for _ in 0..8 {
            window.arrived();
        }
        assert_eq!(window.limit(), 9);
        window.busy();
        assert_eq!(window.limit(), 4);
    }

    #[test]
    fn it_is_never_closed_and_never_past_its_most() {
        let settings = WindowSettings { initial: 3, max_bytes: 1, max_requests: 48 };
        let mut window = Window::new(settings, layout(10));
        window.arrived();
        assert_eq!(window.limit(), 1);
        window.busy();
        assert_eq!(window.limit(), 1);
    }
}
