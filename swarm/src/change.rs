//! Change notification with a deterministic wake-up order.
//!
//! Waiters wake up in the order in which they started to wait. The receivers of a `tokio::sync::watch` channel wake up in a random
//! order, which would make simulations irreproducible.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Notifies tasks of changes to a state that they share.
#[derive(Debug, Default)]
pub struct ChangeNotifier {
    version: AtomicU64,
    waiters: Notify,
}

impl ChangeNotifier {
    /// Wakes all waiters. Call this after the change is visible.
    pub fn notify(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        self.waiters.notify_waiters();
    }

    /// The number of changes so far.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Waits until the version differs from `seen`, then stores the version in `seen`.
    pub async fn changed(&self, seen: &mut u64) {
        self.wait_until(|| self.version() != *seen).await;
        *seen = self.version();
    }

    /// Waits until the condition holds. It is evaluated at once and after each change.
    pub async fn wait_until(&self, holds: impl Fn() -> bool) {
        loop {
            // Registered before the condition is evaluated, so that no change is missed.
            let notified = self.waiters.notified();
            if holds() {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn change_before_wait_is_seen_once() {
        let notifier = ChangeNotifier::default();
        let mut seen = notifier.version();
        assert!(notifier.changed(&mut seen).now_or_never().is_none());
        notifier.notify();
        notifier.notify();
        notifier.changed(&mut seen).await;
        assert!(notifier.changed(&mut seen).now_or_never().is_none());
    }

    #[tokio::test]
    async fn waiters_wake_in_fifo_order() {
        let (notifier, woken) = (Arc::new(ChangeNotifier::default()), Arc::new(Mutex::new(Vec::new())));
        let waiting: Vec<_> = (0..20)
            .map(|number| {
                let (notifier, woken) = (Arc::clone(&notifier), Arc::clone(&woken));
                tokio::spawn(async move {
                    let mut seen = 0;
                    notifier.changed(&mut seen).await;
                    woken.lock().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        notifier.notify();
        futures::future::join_all(waiting).await;
        assert!(woken.lock().is_sorted() && woken.lock().len() == 20);
    }
}
