//! Bandwidth limits, shared by all transfers of a peer in one direction.
//!
//! A token bucket with a short burst: a transfer takes as many tokens as bytes and waits until its debt is paid. Waiters are
//! served in FIFO order.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout_at};

/// The capacity of the bucket, as a duration at the full rate.
const BURST: Duration = Duration::from_millis(100);

/// A limit in bytes per second, or no limit.
#[derive(Debug)]
pub struct BandwidthLimit {
    rate: watch::Sender<Option<NonZeroU64>>,
    /// The time at which all tokens taken so far are paid for.
    paid_until: Mutex<Option<Instant>>,
    /// Bytes that were taken but not transferred.
    refunded: AtomicU64,
}

impl BandwidthLimit {
    /// A limit, or `None` for no limit.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        let rate = watch::Sender::new(bytes_per_second);
        Self { rate, paid_until: Mutex::new(None), refunded: AtomicU64::new(0) }
    }

    /// The limit in bytes per second, or `None` for no limit.
    pub fn rate(&self) -> Option<NonZeroU64> {
        *self.rate.borrow()
    }

    /// Changes the limit. It applies at once, also to waiting transfers.
    pub fn set_rate(&self, bytes_per_second: Option<NonZeroU64>) {
        self.rate.send_replace(bytes_per_second);
    }

    /// Waits until `bytes` may be transferred.
    pub async fn take(&self, bytes: usize) {
        self.take_if(bytes, || true).await;
    }

    /// Returns bytes that were taken but not transferred to the bucket.
    pub fn refund(&self, bytes: usize) {
        if self.rate().is_some() {
            self.refunded.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// Waits for its turn, then calls `wanted`. If that returns true, waits until `bytes` may be transferred. Returns the result of
    /// `wanted`.
    pub async fn take_if(&self, bytes: usize, wanted: impl FnOnce() -> bool) -> bool {
        if self.rate().is_none() {
            return wanted();
        }
        // Held while waiting: tokio's mutex is fair, so it is the queue. A dropped waiter has taken nothing.
        let mut paid_until = self.paid_until.lock().await;
        if !wanted() {
            return false;
        }
        let mut rates = self.rate.subscribe();
        let Some(mut rate) = *rates.borrow_and_update() else { return true };
        let cost = |bytes: f64, rate: NonZeroU64| Duration::from_secs_f64(bytes / rate.get() as f64);
        let now = Instant::now();
        let refund = cost(self.refunded.swap(0, Relaxed) as f64, rate);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let paid = paid_until.map(|paid| paid.checked_sub(refund).unwrap_or(paid));
        let mut until = paid.map_or(now, |paid| paid.max(earliest)) + cost(bytes as f64, rate);
        // The refund is stored before the wait, so that a dropped waiter does not lose it.
        *paid_until = paid;
        while let Ok(Ok(())) = timeout_at(until, rates.changed()).await {
            let now = Instant::now();
            let left = until.saturating_duration_since(now).as_secs_f64() * rate.get() as f64;
            match *rates.borrow_and_update() {
                Some(new) => (rate, until) = (new, now + cost(left, new)),
                None => break,
            }
        }
        *paid_until = Some(until.min(Instant::now()));
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
    async fn changed_limit_applies_to_waiting_transfers() {
        let rate = |bytes| NonZeroU64::new(bytes);
        for (new, seconds) in [(rate(1_000_000), 1.0), (None, 1.0), (rate(500), 19.0)] {
            let limit = BandwidthLimit::new(rate(1_000));
            let start = Instant::now();
            tokio::join!(limit.take(10_000), async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                limit.set_rate(new);
            });
            let elapsed = start.elapsed().as_secs_f64();
            assert!((seconds..=seconds + 0.1).contains(&elapsed), "{new:?}: {elapsed} s");
            assert_eq!(limit.rate(), new);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_does_not_wait() {
        let start = Instant::now();
        BandwidthLimit::new(None).take(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
