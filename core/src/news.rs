//! That something has changed, for those who wait for it.
//!
//! Who waits is woken in the order in which they began to. The receivers of a `tokio::sync::watch` channel are woken in an
//! order of tokio's own chance, so where several of them wait and then do something, no simulation would be the same twice.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counts what has changed.
#[derive(Debug, Default)]
pub(crate) struct News {
    count: AtomicU64,
    told: Notify,
}

impl News {
    /// Something has changed, and everybody can see it already.
    pub(crate) fn tell(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.told.notify_waiters();
    }

    /// How much has changed so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Returns when more has changed than was `seen`, which is then as much as has.
    pub(crate) async fn beyond(&self, seen: &mut u64) {
        self.until(|| self.count() != *seen).await;
        *seen = self.count();
    }

    /// Returns when this holds; it is looked at now and after each change.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            // From here on nothing is missed.
            let told = self.told.notified();
            if holds() {
                return;
            }
            told.await;
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
    async fn what_changed_before_somebody_waits_is_not_missed_and_seen_once() {
        let news = News::default();
        let mut seen = news.count();
        assert!(news.beyond(&mut seen).now_or_never().is_none());
        news.tell();
        news.tell();
        news.beyond(&mut seen).await;
        assert!(news.beyond(&mut seen).now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_waits_is_woken_in_the_order_in_which_they_began_to() {
        let (news, woken) = (Arc::new(News::default()), Arc::new(Mutex::new(Vec::new())));
        let waiting: Vec<_> = (0..20)
            .map(|number| {
                let (news, woken) = (Arc::clone(&news), Arc::clone(&woken));
                tokio::spawn(async move {
                    let mut seen = 0;
                    news.beyond(&mut seen).await;
                    woken.lock().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        news.tell();
        futures::future::join_all(waiting).await;
        assert!(woken.lock().is_sorted() && woken.lock().len() == 20);
    }
}
