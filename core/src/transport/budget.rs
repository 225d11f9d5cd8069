//! How many bytes of replies may be queued: per connection and in the whole process.
//!
//! A connection takes at most a quarter of what is free, so that a few that do not read leave room for the others.
//! A connection that holds nothing may take half of what is free, and whoever comes when nothing at all is taken gets
//! what it asks for: then even the largest reply comes through under a small budget. Several connections from one
//! address take together at most half of what the other addresses leave: however many somebody opens who reads nothing,
//! there is as much left for everybody else. Those who wait on one connection take turns; among connections a small reply
//! may overtake a large one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::network_of;

/// The bytes that the replies of all connections share.
#[derive(Debug)]
pub struct ReplyBudget {
    total: usize,
    per_connection: usize,
    taken: Mutex<Taken>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By those addresses that have taken anything.
    by_address: HashMap<IpAddr, usize>,
}

impl ReplyBudget {
    /// At most `total` bytes in all, and at most `per_connection` for each connection.
    pub fn new(total: usize, per_connection: usize) -> Arc<Self> {
        Arc::new(Self { total, per_connection, taken: Mutex::default(), released: Notify::new() })
    }

    /// The share of one more connection, from this address where it has one.
    pub fn connection(self: &Arc<Self>, address: Option<IpAddr>) -> ConnectionBudget {
        ConnectionBudget {
            shared: Arc::new(Share {
                budget: Arc::clone(self),
                address: address.map(network_of),
                taken: Mutex::new(0),
                turn: tokio::sync::Mutex::new(()),
            }),
        }
    }

    /// How many bytes are taken now, by all connections.
    pub fn taken(&self) -> usize {
        self.taken.lock().all
    }
}

#[derive(Debug)]
struct Share {
    budget: Arc<ReplyBudget>,
    address: Option<IpAddr>,
    taken: Mutex<usize>,
    turn: tokio::sync::Mutex<()>,
}

impl Share {
    fn try_take(&self, bytes: usize) -> bool {
        let mut taken = self.budget.taken.lock();
        let mut own = self.taken.lock();
        let free = self.budget.total.saturating_sub(taken.all);
        let there =
            self.address.and_then(|address| taken.by_address.get(&address)).map_or(*own, |&there| there);
        let alone = there == *own;
        // Half of what other addresses leave, without what is taken of it.
        let free_there = if alone { free } else { free.saturating_sub(there) / 2 };
        // What it has already counts: else a few connections that do not read take everything in small steps.
        let share = match *own {
            0 if alone => free / 2,
            0 => free_there,
            own => (free_there.saturating_add(own) / 4).min(self.budget.per_connection),
        };
        if taken.all > 0 && own.saturating_add(bytes) > share {
            return false;
        }
        self.add(&mut taken, &mut own, bytes);
        true
    }

    fn take(&self, bytes: usize) {
        let mut taken = self.budget.taken.lock();
        let mut own = self.taken.lock();
        self.add(&mut taken, &mut own, bytes);
    }

    fn add(&self, taken: &mut Taken, own: &mut usize, bytes: usize) {
        taken.all = taken.all.saturating_add(bytes);
        *own = own.saturating_add(bytes);
        if let Some(address) = self.address {
            *taken.by_address.entry(address).or_default() += bytes;
        }
    }

    fn release(&self, bytes: usize) {
        let mut taken = self.budget.taken.lock();
        taken.all -= bytes;
        *self.taken.lock() -= bytes;
        if let Some(address) = self.address
            && let Entry::Occupied(mut there) = taken.by_address.entry(address)
        {
            *there.get_mut() -= bytes;
            if *there.get() == 0 {
                there.remove();
            }
        }
        drop(taken);
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
        let greedy = budget.connection(None);
        while let Some(reservation) = greedy.reserve(4).now_or_never() {
            held.push(reservation);
        }
        assert_eq!((greedy.taken(), budget.taken()), (8, 8));
        let others: Vec<_> = (0..40).map(|_| budget.connection(None)).collect();
        held.extend(others.iter().filter_map(|other| other.reserve(4).now_or_never()));
        assert!(budget.taken() <= 32);
        let small = budget.connection(None);
        assert!(small.reserve(1).now_or_never().is_some(), "a small reply still fits");
    }

    #[tokio::test]
    async fn several_connections_that_never_read_leave_room_for_another() {
        let budget = ReplyBudget::new(32 * 64, 8 * 64);
        let mut held = Vec::new();
        let greedy: Vec<_> = (0..10).map(|_| budget.connection(None)).collect();
        for connection in &greedy {
            while let Some(reservation) = connection.reserve(16).now_or_never() {
                held.push(reservation);
            }
        }
        let another = budget.connection(None);
        assert!(another.reserve(16).now_or_never().is_some(), "{} of 2048 are taken", budget.taken());
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_bytes_are_given_back() {
        let budget = ReplyBudget::new(8, 8);
        let connection = budget.connection(None);
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
        let held = budget.connection(None).reserve(100).now_or_never().unwrap();
        assert_eq!(held.bytes(), 100);
        assert!(budget.connection(None).reserve(1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn merged_bytes_are_given_back_once() {
        let budget = ReplyBudget::new(100, 100);
        let connection = budget.connection(None);
        let mut first = connection.reserve(10).await;
        first.merge(connection.reserve(5).await);
        assert_eq!((first.bytes(), budget.taken()), (15, 15));
        drop(first);
        assert_eq!((connection.taken(), budget.taken()), (0, 0));
    }

    fn from(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    /// All that these connections can take in steps of 16.
    fn take_all(connections: &[ConnectionBudget]) -> Vec<Reservation> {
        let steps = |connection: &ConnectionBudget| {
            let connection = connection.clone();
            std::iter::from_fn(move || connection.reserve(16).now_or_never())
        };
        connections.iter().flat_map(steps).collect()
    }

    #[tokio::test]
    async fn all_connections_of_an_address_leave_half_to_the_others() {
        let budget = ReplyBudget::new(32 * 64, 8 * 64);
        let greedy: Vec<_> = (0..64).map(|_| budget.connection(from(1))).collect();
        let mut held = take_all(&greedy);
        assert!((900..=1024).contains(&budget.taken()), "{} of 2048", budget.taken());
        // Half of that is for the next one, and so on.
        let more: Vec<_> = (0..64).map(|_| budget.connection(from(2))).collect();
        held.extend(take_all(&more));
        assert!((1400..=1536).contains(&budget.taken()), "{} of 2048", budget.taken());
        let modest = budget.connection(from(3));
        for _ in 0..8 {
            held.push(modest.reserve(16).now_or_never().expect("there is room for others"));
        }
        drop(held);
        assert_eq!((budget.taken(), budget.taken.lock().by_address.len()), (0, 0));
    }

    #[tokio::test]
    async fn some_connections_of_an_address_leave_room_for_another_from_there() {
        let budget = ReplyBudget::new(32 * 64, 8 * 64);
        let greedy: Vec<_> = (0..8).map(|_| budget.connection(from(1))).collect();
        let _held = take_all(&greedy);
        assert!(
            budget.connection(from(1)).reserve(16).now_or_never().is_some(),
            "{} are taken",
            budget.taken()
        );
    }

    #[tokio::test]
    async fn who_is_alone_at_its_address_has_what_a_connection_may_have() {
        for address in [None, from(1)] {
            let budget = ReplyBudget::new(32 * 64, 8 * 64);
            let alone = budget.connection(address);
            let _held = take_all(std::slice::from_ref(&alone));
            assert_eq!(alone.taken(), 8 * 64);
            // And one beside it still finds half of what others would leave.
            assert!(budget.connection(address).reserve(8 * 64).now_or_never().is_some());
        }
    }
}
