//! A limit on bytes a second, shared by everything that a peer sends or fetches.
//!
//! A token bucket: tokens come in at the rate, up to a short burst; who wants to move bytes takes as many and
//! waits until the debt is paid. Waiters are served in the order in which they came.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    /// Bytes that were paid for and did not pass.
    given_back: AtomicU64,
}

impl RateLimit {
    /// At most `bytes_per_second`, or without a limit.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { rate: bytes_per_second, paid_until: Mutex::new(None), given_back: AtomicU64::new(0) }
    }

    /// Waits until `bytes` may pass.
    pub async fn take(&self, bytes: usize) {
        self.take_if(bytes, || true).await;
    }

    /// Of what was taken, these bytes did not pass: whoever comes next need not wait for them.
    pub fn give_back(&self, bytes: usize) {
        if self.rate.is_some() {
            self.given_back.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// Waits until it is the caller's turn; if they are to pass at all by then, waits until `bytes` may. Says whether
    /// they are to.
    pub async fn take_if(&self, bytes: usize, wanted: impl FnOnce() -> bool) -> bool {
        let Some(rate) = self.rate else { return wanted() };
        let cost = |bytes: f64| Duration::from_secs_f64(bytes / rate.get() as f64);
        // Held while waiting on purpose: that is the queue, and tokio's mutex is first come, first served. A
        // waiter that is dropped has taken nothing.
        let mut paid_until = self.paid_until.lock().await;
        if !wanted() {
            return false;
        }
        let now = Instant::now();
        let back = cost(self.given_back.swap(0, Relaxed) as f64);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let paid = paid_until.map(|paid| paid.checked_sub(back).unwrap_or(paid));
        let until = paid.map_or(now, |paid| paid.max(earliest)) + cost(bytes as f64);
        // A waiter that is dropped has not used it either.
        *paid_until = paid;
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
    async fn what_did_not_pass_is_taken_from_nobody() {
        let limit = RateLimit::new(NonZeroU64::new(1_000_000));
        let start = Instant::now();
        for _ in 0..100 {
            limit.take(100_000).await;
            limit.give_back(50_000);
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((4.9..=5.2).contains(&seconds), "5 MB at 1 MB/s took {seconds} s");
        // It is not saved up.
        tokio::time::sleep(Duration::from_secs(5)).await;
        limit.give_back(5_000_000);
        let start = Instant::now();
        limit.take(1_000_000).await;
        assert!(start.elapsed() >= Duration::from_millis(900));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let start = Instant::now();
        RateLimit::new(None).take(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
