//! Turns of requests that read much, shared fairly between addresses.
//!
//! Without it, the requests of one address that are already waiting would delay those of all other addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use enjambre_core::model::network::network_of;

/// A limit of concurrent work, of which one address gets a part. Requests of one address wait for each other first, and
/// then in the order of their arrival for those of other addresses.
#[derive(Debug)]
pub struct Turns {
    all: Semaphore,
    per_address: usize,
    addresses: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// The place of a request among those of its address. The last one removes the entry of the address.
struct Place<'a> {
    turns: &'a Turns,
    network: IpAddr,
    turn: Arc<Semaphore>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut addresses = self.turns.addresses.lock();
        // The other one is in the map.
        if Arc::strong_count(&self.turn) == 2 {
            addresses.remove(&self.network);
        }
    }
}

impl Turns {
    /// Allows `all` concurrent turns, `per_address` of them for one address (for IPv6, one /64 network).
    pub fn new(all: usize, per_address: usize) -> Self {
        Self { all: Semaphore::new(all), per_address, addresses: Mutex::default() }
    }

    /// Runs the work when it is its turn. Returns `None` if it had to wait for longer than `limit`.
    pub async fn run<T>(
        &self,
        address: Option<IpAddr>,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let place = address.map(|address| self.place(network_of(address)));
        let turn = async {
            // The semaphores are never closed.
            let own = match &place {
                Some(place) => place.turn.acquire().await.ok(),
                None => None,
            };
            (own, self.all.acquire().await.ok())
        };
        let _turn = timeout(limit, turn).await.ok()?;
        Some(work.await)
    }

    fn place(&self, network: IpAddr) -> Place<'_> {
        let mut addresses = self.addresses.lock();
        let new = || Arc::new(Semaphore::new(self.per_address));
        let turn = Arc::clone(addresses.entry(network).or_insert_with(new));
        Place { turns: self, network, turn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use tokio::time::{Instant, sleep};

    const WORK: Duration = Duration::from_millis(10);
    const LIMIT: Duration = Duration::from_millis(995);

    async fn work(turns: &Turns, last: u8) -> Option<Duration> {
        let start = Instant::now();
        let done = async {
            sleep(WORK).await;
            start.elapsed()
        };
        turns.run(Some(IpAddr::from([10, 0, 0, last])), LIMIT, done).await
    }

    #[tokio::test(start_paused = true)]
    async fn address_with_many_requests_does_not_delay_others() {
        let turns = Turns::new(4, 2);
        let flood = join_all((0..100).map(|_| work(&turns, 1)));
        let other = async {
            sleep(WORK / 2).await;
            work(&turns, 2).await
        };
        let (flood, other) = tokio::join!(flood, other);
        assert_eq!(other, Some(WORK));
        assert_eq!(flood.iter().flatten().max(), Some(&(50 * WORK)));
        assert!(turns.addresses.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn wait_for_a_turn_is_limited() {
        let turns = Turns::new(4, 2);
        let flood = join_all((0..300).map(|_| work(&turns, 1))).await;
        assert_eq!(flood.iter().flatten().count(), 200);
        let abandoned = timeout(WORK / 2, work(&turns, 1)).await;
        assert!(abandoned.is_err() && turns.addresses.lock().is_empty());
    }
}
