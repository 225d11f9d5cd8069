//! The budget for queued reply bytes, per connection and per process.
//!
//! A connection takes at most a quarter of the free bytes, so a few connections that do not read cannot exhaust the budget.
//! A connection without reserved bytes may take half of the free bytes. If no bytes are reserved at all, any reservation
//! succeeds, so that even the largest reply fits into a small budget. All connections of one address together take at most
//! half of the bytes that the other addresses leave free, however many connections the address opens. Reservations of one
//! connection are served in order; between connections, a small reservation may overtake a large one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::error::TransportError;
use super::message::Message;
use crate::model::network::network_of;

/// The budget that all connections share.
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
    /// Only addresses with reserved bytes.
    by_address: HashMap<IpAddr, usize>,
}

impl ReplyBudget {
    /// Creates a budget of `total` bytes, and at most `per_connection` bytes for each connection.
    pub fn new(total: usize, per_connection: usize) -> Arc<Self> {
        Arc::new(Self { total, per_connection, taken: Mutex::default(), released: Notify::new() })
    }

    /// Returns the budget of a new connection from this address.
    pub fn connection(self: &Arc<Self>, address: Option<IpAddr>) -> Arc<ConnectionBudget> {
        Arc::new(ConnectionBudget {
            budget: Arc::clone(self),
            address: address.map(network_of),
            taken: Mutex::new(0),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// The number of reserved bytes of all connections.
    pub fn taken(&self) -> usize {
        self.taken.lock().all
    }
}

/// The budget of one connection.
#[derive(Debug)]
pub struct ConnectionBudget {
    budget: Arc<ReplyBudget>,
    address: Option<IpAddr>,
    taken: Mutex<usize>,
    turn: tokio::sync::Mutex<()>,
}

impl ConnectionBudget {
    fn try_take(&self, bytes: usize) -> bool {
        let mut taken = self.budget.taken.lock();
        let mut own = self.taken.lock();
        let free = self.budget.total.saturating_sub(taken.all);
        let of_address =
            self.address.and_then(|address| taken.by_address.get(&address)).map_or(*own, |&taken| taken);
        let alone = of_address == *own;
        // Half of the bytes that other addresses leave free, minus the reserved bytes of this address.
        let free_for_address = if alone { free } else { free.saturating_sub(of_address) / 2 };
        // Includes the bytes that the connection already has. Otherwise, a few connections that do not read would take the
        // whole budget in small steps.
        let share = match *own {
            0 if alone => free / 2,
            0 => free_for_address,
            own => (free_for_address.saturating_add(own) / 4).min(self.budget.per_connection),
        };
        if taken.all > 0 && own.saturating_add(bytes) > share {
            return false;
        }
        self.add(&mut taken, &mut own, bytes);
        true
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
            && let Entry::Occupied(mut of_address) = taken.by_address.entry(address)
        {
            *of_address.get_mut() -= bytes;
            if *of_address.get() == 0 {
                of_address.remove();
            }
        }
        drop(taken);
        self.budget.released.notify_waiters();
    }

    /// Waits until `bytes` are free and reserves them. Dropping the future reserves nothing.
    pub async fn reserve(self: &Arc<Self>, bytes: usize) -> Reservation {
        if bytes > 0 && !self.try_take(bytes) {
            let _turn = self.turn.lock().await;
            loop {
                let released = self.budget.released.notified();
                tokio::pin!(released);
                // Before the check, so that no release is missed.
                released.as_mut().enable();
                if self.try_take(bytes) {
                    break;
                }
                released.await;
            }
        }
        Reservation { of: Arc::clone(self), bytes }
    }

    /// Reserves bytes immediately, even if they are not free. For an increase of a reservation: waiting with a reservation
    /// could deadlock.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Reservation {
        self.add(&mut self.budget.taken.lock(), &mut self.taken.lock(), bytes);
        Reservation { of: Arc::clone(self), bytes }
    }
}

/// Reserved bytes. Dropping a reservation releases them.
#[derive(Debug)]
pub struct Reservation {
    of: Arc<ConnectionBudget>,
    bytes: usize,
}

impl Reservation {
    /// The number of reserved bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the bytes of another reservation of the same connection.
    pub fn merge(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.of, &other.of), "reservations of one connection");
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Releases the bytes beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        if surplus > 0 {
            self.bytes = bytes;
            self.of.release(surplus);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.of.release(self.bytes);
        }
    }
}

/// The reserved bytes of one reply, for [`ReplySink`](super::ReplySink).
#[derive(Debug, Default)]
pub struct ReplyReservation(Option<Reservation>);

impl ReplyReservation {
    /// Reserves further bytes for the reply, see [`ReplySink::reserve`](super::ReplySink::reserve). Fails when `closed` is
    /// cancelled.
    pub async fn reserve(
        &mut self,
        budget: &Arc<ConnectionBudget>,
        closed: &CancellationToken,
        bytes: usize,
    ) -> Result<(), TransportError> {
        if closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        match &mut self.0 {
            Some(before) if before.bytes() > 0 => before.merge(budget.take(bytes)),
            reserved => {
                // Biased: the end of a connection frees bytes, which its own waiting replies must not take.
                *reserved = Some(tokio::select! {
                    biased;
                    () = closed.cancelled() => return Err(TransportError::Closed),
                    reserved = budget.reserve(bytes) => reserved,
                });
            }
        }
        Ok(())
    }

    /// Reserves the missing bytes of a complete reply, and returns a reservation of exactly its bytes.
    pub async fn complete(
        mut self,
        budget: &Arc<ConnectionBudget>,
        closed: &CancellationToken,
        reply: &Message,
    ) -> Result<Reservation, TransportError> {
        let bytes = reply.header.len() + reply.payload.len();
        let before = self.0.as_ref().map_or(0, Reservation::bytes);
        self.reserve(budget, closed, bytes.saturating_sub(before)).await?;
        let mut reserved = self.0.ok_or(TransportError::Closed)?;
        reserved.shrink_to(bytes);
        Ok(reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn stalled_connection_leaves_budget_for_others() {
        let budget = ReplyBudget::new(32, 8);
        let mut held = Vec::new();
        let greedy = budget.connection(None);
        while let Some(reservation) = greedy.reserve(4).now_or_never() {
            held.push(reservation);
        }
        assert_eq!((*greedy.taken.lock(), budget.taken()), (8, 8));
        let others: Vec<_> = (0..40).map(|_| budget.connection(None)).collect();
        held.extend(others.iter().filter_map(|other| other.reserve(4).now_or_never()));
        assert!(budget.taken() <= 32);
        let small = budget.connection(None);
        assert!(small.reserve(1).now_or_never().is_some(), "a small reply fits");
    }

    #[tokio::test]
    async fn stalled_connections_leave_budget_for_another() {
        let budget = ReplyBudget::new(32 * 64, 8 * 64);
        let mut held = Vec::new();
        let greedy: Vec<_> = (0..10).map(|_| budget.connection(None)).collect();
        for connection in &greedy {
            while let Some(reservation) = connection.reserve(16).now_or_never() {
                held.push(reservation);
            }
        }
        let another = budget.connection(None);
        assert!(another.reserve(16).now_or_never().is_some(), "{} of 2048 reserved", budget.taken());
    }

    #[tokio::test]
    async fn waiting_reservation_continues_after_a_release() {
        let budget = ReplyBudget::new(8, 8);
        let connection = budget.connection(None);
        let mut first = connection.reserve(8).await;
        let waiting = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move { connection.reserve(2).await.bytes() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.shrink_to(0);
        assert_eq!(waiting.await.unwrap(), 2);
        assert_eq!(budget.taken(), 0);
    }

    #[tokio::test]
    async fn oversized_reply_fits_an_unused_budget() {
        let budget = ReplyBudget::new(8, 4);
        let held = budget.connection(None).reserve(100).now_or_never().unwrap();
        assert_eq!(held.bytes(), 100);
        assert!(budget.connection(None).reserve(1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn merged_bytes_are_released_once() {
        let budget = ReplyBudget::new(100, 100);
        let connection = budget.connection(None);
        let mut first = connection.reserve(10).await;
        first.merge(connection.reserve(5).await);
        assert_eq!((first.bytes(), budget.taken()), (15, 15));
        drop(first);
        assert_eq!((*connection.taken.lock(), budget.taken()), (0, 0));
    }

    fn from(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    /// Reserves as much as these connections can, in steps of 16.
    fn take_all(connections: &[Arc<ConnectionBudget>]) -> Vec<Reservation> {
        let steps = |connection: &Arc<ConnectionBudget>| {
            let connection = Arc::clone(connection);
            std::iter::from_fn(move || connection.reserve(16).now_or_never())
        };
        connections.iter().flat_map(steps).collect()
    }

    #[tokio::test]
    async fn connections_of_one_address_leave_half_to_others() {
        let budget = ReplyBudget::new(32 * 64, 8 * 64);
        let greedy: Vec<_> = (0..64).map(|_| budget.connection(from(1))).collect();
        let mut held = take_all(&greedy);
        assert!((900..=1024).contains(&budget.taken()), "{} of 2048 reserved", budget.taken());
        // The next address gets half of the rest.
        let more: Vec<_> = (0..64).map(|_| budget.connection(from(2))).collect();
        held.extend(take_all(&more));
        assert!((1400..=1536).contains(&budget.taken()), "{} of 2048 reserved", budget.taken());
        let modest = budget.connection(from(3));
        for _ in 0..8 {
            held.push(modest.reserve(16).now_or_never().expect("others have a share"));
        }
        drop(held);
        assert_eq!((budget.taken(), budget.taken.lock().by_address.len()), (0, 0));
    }

    #[tokio::test]
    async fn some_connections_leave_budget_for_the_same_address() {
        let budget = ReplyBudget::new(32 * 64, 8 * 64);
        let greedy: Vec<_> = (0..8).map(|_| budget.connection(from(1))).collect();
        let _held = take_all(&greedy);
        assert!(
            budget.connection(from(1)).reserve(16).now_or_never().is_some(),
            "{} reserved",
            budget.taken()
        );
    }

    #[tokio::test]
    async fn single_connection_of_an_address_gets_its_full_share() {
        for address in [None, from(1)] {
            let budget = ReplyBudget::new(32 * 64, 8 * 64);
            let alone = budget.connection(address);
            let _held = take_all(std::slice::from_ref(&alone));
            assert_eq!(*alone.taken.lock(), 8 * 64);
            // A second connection gets half of the bytes left.
            assert!(budget.connection(address).reserve(8 * 64).now_or_never().is_some());
        }
    }
}
