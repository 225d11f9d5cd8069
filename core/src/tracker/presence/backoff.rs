//! Pauses between attempts: each about twice as long as the one before, and never the same for two peers.

use std::time::Duration;

use rand::RngExt;

use crate::machine;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(15);

/// The pauses of one series of attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self { next: FIRST }
    }

    /// The next pause: between half and all of what doubling gives.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(machine::rng().random_range(0.5..1.0));
        self.next = (self.next * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let mut backoff = Backoff::new();
        assert!(backoff.pause() <= FIRST);
        let pauses: Vec<_> = (0..20).map(|_| backoff.pause()).collect();
        assert!(pauses[10..].iter().all(|pause| (LONGEST / 2..=LONGEST).contains(pause)));
    }
}
