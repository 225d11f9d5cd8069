//! How many bytes of replies may be queued: per connection and in the whole process.
//!
//! A connection takes at most a quarter of what is free, so that a few that do not read leave room for the others.
//! A connection that holds nothing may take half of what is free, and whoever comes when nothing at all is taken gets
//! what it asks for: then even the largest reply comes through under a small budget. Those who wait on one connection
//! take turns.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The bytes that the replies of all connections share.
#[derive(Debug)]
pub struct ReplyBudget {
    total: usize,
    per_connection: usize,
    taken: Mutex<usize>,
    released: Notify,
}

impl ReplyBudget {
    /// At most `total` bytes in all, and at most `per_connection` for each connection.
    pub fn new(total: usize, per_connection: usize) -> Arc<Self> {
        Arc::new(Self { total, per_connection, taken: Mutex::new(0), released: Notify::new() })
    }

    /// The share of one more connection.
    pub fn connection(self: &Arc<Self>) -> ConnectionBudget {
        ConnectionBudget {
            shared: Arc::new(Share {
                budget: Arc::clone(self),
                taken: Mutex::new(0),
                turn: tokio::sync::Mutex::new(()),
            }),
        }
    }

    /// How many bytes are taken now, by all connections.
    pub fn taken(&self) -> usize {
        *self.taken.lock()
    }
}

#[derive(Debug)]
struct Share {
    budget: Arc<ReplyBudget>,
    taken: Mutex<usize>,
    turn: tokio::sync::Mutex<()>,
}

impl Share {
    fn try_take(&self, bytes: usize) -> bool {
        let mut all = self.budget.taken.lock();
        let mut own = self.taken.lock();
        let free = self.budget.total.saturating_sub(*all);
        // What it has already counts: else a few connections that do not read take everything in small steps.
        let share = if *own == 0 {
            free / 2
        } else {
            (free.saturating_add(*own) / 4).min(self.budget.per_connection)
        };
        let fits = *all == 0 || own.saturating_add(bytes) <= share;
        if fits {
            *all = all.saturating_add(bytes);
            *own = own.saturating_add(bytes);
        }
        fits
    }

    fn take(&self, bytes: usize) {
        let mut all = self.budget.taken.lock();
        let mut own = self.taken.lock();
        *all = all.saturating_add(bytes);
        *own = own.saturating_add(bytes);
    }

    fn release(&self, bytes: usize) {
        *self.budget.taken.lock() -= bytes;
        *self.taken.lock() -= bytes;
        self.budget.released.notify_waiters();
    }
}

/// What one connection may take of a [`ReplyBudget`]. Clones are the same share.
#[derive(Debug, Clone)]
pub struct ConnectionBudget {
    shared: Arc<Share>,
}

impl ConnectionBudget {
    /// Waits until `bytes` are free and takes them. Dropping the future takes nothing.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        if bytes > 0 && !self.shared.try_take(bytes) {
            let _turn = self.shared.turn.lock().await;
            loop {
                let released = self.shared.budget.released.notified();
                tokio::pin!(released);
                // Before looking, so that nothing released from here on is missed.
                released.as_mut().enable();
                if self.shared.try_take(bytes) {
                    break;
                }
                released.await;
            }
        }
        Reservation { share: Arc::clone(&self.shared), bytes }
    }

    /// Takes bytes at once, whether they are free or not. For what is added to a reservation: who waits while holding
    /// something may wait for somebody who does the same.
    pub fn take(&self, bytes: usize) -> Reservation {
        self.shared.take(bytes);
        Reservation { share: Arc::clone(&self.shared), bytes }
    }

    /// How many bytes this connection has taken.
    pub fn taken(&self) -> usize {
        *self.shared.taken.lock()
    }
}

/// Bytes that were taken; dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    share: Arc<Share>,
    bytes: usize,
}

impl Reservation {
    /// How many bytes it holds.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds what another reservation of the same connection holds.
    pub fn merge(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.share, &other.share), "reservations of one connection");
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back what is held beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        if surplus > 0 {
            self.bytes = bytes;
            self.share.release(surplus);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.share.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_connection_that_never_reads_leaves_room_for_the_others() {
        let budget = ReplyBudget::new(32, 8);
        let mut held = Vec::new();
        let greedy = budget.connection();
        while let Some(reservation) = greedy.reserve(4).now_or_never() {
            held.push(reservation);
        }
        assert_eq!((greedy.taken(), budget.taken()), (8, 8));
        let others: Vec<_> = (0..40).map(|_| budget.connection()).collect();
        held.extend(others.iter().filter_map(|other| other.reserve(4).now_or_never()));
        assert!(budget.taken() <= 32);
        let small = budget.connection();
        assert!(small.reserve(1).now_or_never().is_some(), "a small reply still fits");
    }

    #[tokio::test]
    async fn several_connections_that_never_read_leave_room_for_another() {
        let budget = ReplyBudget::new(32 * 64, 8 * 64);
        let mut held = Vec::new();
        let greedy: Vec<_> = (0..10).map(|_| budget.connection()).collect();
        for connection in &greedy {
            while let Some(reservation) = connection.reserve(16).now_or_never() {
                held.push(reservation);
            }
        }
        let another = budget.connection();
        assert!(another.reserve(16).now_or_never().is_some(), "{} of 2048 are taken", budget.taken());
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_bytes_are_given_back() {
        let budget = ReplyBudget::new(8, 8);
        let connection = budget.connection();
        let mut first = connection.reserve(8).await;
        let waiting = tokio::spawn({
            let connection = connection.clone();
            async move { connection.reserve(2).await.bytes() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.shrink_to(0);
        assert_eq!(waiting.await.unwrap(), 2);
        assert_eq!(budget.taken(), 0);
    }

    #[tokio::test]
    async fn the_largest_reply_comes_through_a_small_budget() {
        let budget = ReplyBudget::new(8, 4);
        let held = budget.connection().reserve(100).now_or_never().unwrap();
        assert_eq!(held.bytes(), 100);
        assert!(budget.connection().reserve(1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn merged_bytes_are_given_back_once() {
        let budget = ReplyBudget::new(100, 100);
        let connection = budget.connection();
        let mut first = connection.reserve(10).await;
        first.merge(connection.reserve(5).await);
        assert_eq!((first.bytes(), budget.taken()), (15, 15));
        drop(first);
        assert_eq!((connection.taken(), budget.taken()), (0, 0));
    }
}
