//! A limit on bytes a second, shared by everything that a peer sends or fetches.
//!
//! A token bucket: tokens come in at the rate, up to a short burst; who wants to move bytes takes as many and
//! waits until the debt is paid. Waiters are served in the order in which they came.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How much may pass at once after a pause, as a time at the full rate.
const BURST: Duration = Duration::from_millis(100);

/// A limit on bytes a second, or none.
#[derive(Debug)]
pub struct RateLimit {
    rate: Option<NonZeroU64>,
    /// The time at which everything that was taken so far is paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// At most `bytes_per_second`, or without a limit.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { rate: bytes_per_second, paid_until: Mutex::new(None) }
    }

    /// Waits until `bytes` may pass.
    pub async fn take(&self, bytes: usize) {
        self.take_if(bytes, || true).await;
    }

    /// Waits until it is the caller's turn; if they are to pass at all by then, waits until `bytes` may. Says whether
    /// they are to.
    pub async fn take_if(&self, bytes: usize, wanted: impl FnOnce() -> bool) -> bool {
        let Some(rate) = self.rate else { return wanted() };
        let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        // Held while waiting on purpose: that is the queue, and tokio's mutex is first come, first served. A
        // waiter that is dropped has taken nothing.
        let mut paid_until = self.paid_until.lock().await;
        if !wanted() {
            return false;
        }
        let now = Instant::now();
        let from = paid_until.map_or(now, |paid| paid.max(now.checked_sub(BURST).unwrap_or(now)));
        let until = from + cost;
        tokio::time::sleep_until(until).await;
        *paid_until = Some(until);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_and_not_faster() {
        let limit = RateLimit::new(NonZeroU64::new(1_000_000));
        let start = Instant::now();
        for _ in 0..100 {
            limit.take(100_000).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((9.8..=10.1).contains(&seconds), "10 MB at 1 MB/s took {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let start = Instant::now();
        RateLimit::new(None).take(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
