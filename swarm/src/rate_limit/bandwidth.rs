//! Bandwidth limits, shared by all transfers of a peer in one direction.
//!
//! A token bucket with a short burst: a transfer takes as many tokens as bytes and waits until its debt is paid. Waiters are
//! served in FIFO order.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// The capacity of the bucket, as a duration at the full rate.
const BURST: Duration = Duration::from_millis(100);

/// A limit in bytes per second, or no limit.
#[derive(Debug)]
pub struct BandwidthLimit {
    rate: Option<NonZeroU64>,
    /// The time at which all tokens taken so far are paid for.
    paid_until: Mutex<Option<Instant>>,
    /// Bytes that were taken but not transferred.
    refunded: AtomicU64,
}

impl BandwidthLimit {
    /// A limit, or `None` for no limit.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { rate: bytes_per_second, paid_until: Mutex::new(None), refunded: AtomicU64::new(0) }
    }

    /// Waits until `bytes` may be transferred.
    pub async fn take(&self, bytes: usize) {
        self.take_if(bytes, || true).await;
    }

    /// Returns bytes that were taken but not transferred to the bucket.
    pub fn refund(&self, bytes: usize) {
        if self.rate.is_some() {
            self.refunded.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// Waits for its turn, then calls `wanted`. If that returns true, waits until `bytes` may be transferred. Returns the result of
    /// `wanted`.
    pub async fn take_if(&self, bytes: usize, wanted: impl FnOnce() -> bool) -> bool {
        let Some(rate) = self.rate else { return wanted() };
        let cost = |bytes: f64| Duration::from_secs_f64(bytes / rate.get() as f64);
        // Held while waiting: tokio's mutex is fair, so it is the queue. A dropped waiter has taken nothing.
        let mut paid_until = self.paid_until.lock().await;
        if !wanted() {
            return false;
        }
        let now = Instant::now();
        let refund = cost(self.refunded.swap(0, Relaxed) as f64);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let paid = paid_until.map(|paid| paid.checked_sub(refund).unwrap_or(paid));
        let until = paid.map_or(now, |paid| paid.max(earliest)) + cost(bytes as f64);
        // The refund is stored before the wait, so that a dropped waiter does not lose it.
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
    async fn transfer_runs_at_the_rate() {
        let limit = BandwidthLimit::new(NonZeroU64::new(1_000_000));
        let start = Instant::now();
        for _ in 0..100 {
            limit.take(100_000).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((9.8..=10.1).contains(&seconds), "10 MB at 1 MB/s took {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn refunded_bytes_are_available_but_not_saved_up() {
        let limit = BandwidthLimit::new(NonZeroU64::new(1_000_000));
        let start = Instant::now();
        for _ in 0..100 {
            limit.take(100_000).await;
            limit.refund(50_000);
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((4.9..=5.2).contains(&seconds), "5 MB at 1 MB/s took {seconds} s");
        tokio::time::sleep(Duration::from_secs(5)).await;
        limit.refund(5_000_000);
        let start = Instant::now();
        limit.take(1_000_000).await;
        assert!(start.elapsed() >= Duration::from_millis(900));
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_does_not_wait() {
        let start = Instant::now();
        BandwidthLimit::new(None).take(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
