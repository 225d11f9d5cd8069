//! Turns of work of which one remote could request much, shared fairly between addresses or keys.
//!
//! Without it, the requests of one remote that are already waiting would delay those of all others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// A limit of concurrent work, of which one key gets a part. Work of one key waits for other work of the key first, and
/// then in the order of arrival for that of other keys. So keys with waiting work take turns.
#[derive(Debug)]
pub struct Turns<K: Copy + Eq + Hash> {
    all: Semaphore,
    /// The number of turns.
    count: usize,
    per_key: usize,
    /// The turns of each key with work, and the number of its places.
    keys: Mutex<HashMap<K, (Arc<Semaphore>, usize)>>,
}

/// A turn. Ends when dropped.
#[derive(Debug)]
pub struct Turn<'a, K: Copy + Eq + Hash> {
    _all: Option<SemaphorePermit<'a>>,
    _own: Option<OwnedSemaphorePermit>,
    _place: Option<Place<'a, K>>,
}

/// The place of work among that of its key. The last one removes the entry of the key.
#[derive(Debug)]
struct Place<'a, K: Copy + Eq + Hash> {
    turns: &'a Turns<K>,
    key: K,
}

impl<K: Copy + Eq + Hash> Drop for Place<'_, K> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.turns.keys.lock().entry(self.key) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }
}

impl<K: Copy + Eq + Hash> Turns<K> {
    /// Allows `all` concurrent turns, `per_key` of them for one key.
    pub fn new(all: usize, per_key: usize) -> Self {
        Self { all: Semaphore::new(all), count: all, per_key, keys: Mutex::default() }
    }

    /// Waits for a turn. Work without a key waits only for that of all keys.
    pub async fn turn(&self, key: Option<K>) -> Turn<'_, K> {
        let (place, own) = key.map(|key| self.place(key)).unzip();
        // The semaphores are never closed.
        let own = match own {
            Some(own) => own.acquire_owned().await.ok(),
            None => None,
        };
        Turn { _all: self.all.acquire().await.ok(), _own: own, _place: place }
    }

    /// Runs the work when it is its turn. Returns `None` if it had to wait for longer than `limit`.
    pub async fn run<T>(&self, key: Option<K>, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let _turn = timeout(limit, self.turn(key)).await.ok()?;
        Some(work.await)
    }

    /// Returns whether work with a key waits for a turn.
    pub fn has_waiting(&self) -> bool {
        let places: usize = self.keys.lock().values().map(|(_, places)| places).sum();
        places > self.count - self.all.available_permits()
    }

    fn place(&self, key: K) -> (Place<'_, K>, Arc<Semaphore>) {
        let mut keys = self.keys.lock();
        let (own, places) = keys.entry(key).or_insert_with(|| (Arc::new(Semaphore::new(self.per_key)), 0));
        *places += 1;
        (Place { turns: self, key }, Arc::clone(own))
    }

    /// The number of free turns.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.all.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use tokio::time::{Instant, sleep};

    const WORK: Duration = Duration::from_millis(10);
    const LIMIT: Duration = Duration::from_millis(995);

    async fn work(turns: &Turns<u8>, key: u8) -> Option<Duration> {
        let start = Instant::now();
        let done = async {
            sleep(WORK).await;
            start.elapsed()
        };
        turns.run(Some(key), LIMIT, done).await
    }

    #[tokio::test(start_paused = true)]
    async fn key_with_much_work_does_not_delay_others() {
        let turns = Turns::new(4, 2);
        let flood = join_all((0..100).map(|_| work(&turns, 1)));
        let other = async {
            sleep(WORK / 2).await;
            work(&turns, 2).await
        };
        let (flood, other) = tokio::join!(flood, other);
        assert_eq!(other, Some(WORK));
        assert_eq!(flood.iter().flatten().max(), Some(&(50 * WORK)));
        assert!(turns.keys.lock().is_empty());
    }

    #[tokio::test]
    async fn waiting_work_of_another_key_is_seen() {
        let turns = Turns::new(2, 2);
        let held = [turns.turn(Some(1)).await, turns.turn(Some(1)).await];
        assert!(!turns.has_waiting());
        let mut other = Box::pin(turns.turn(Some(2)));
        assert!(futures::poll!(&mut other).is_pending() && turns.has_waiting());
        drop(held);
        let _held = other.await;
        assert!(!turns.has_waiting());
    }

    #[tokio::test(start_paused = true)]
    async fn wait_for_a_turn_is_limited() {
        let turns = Turns::new(4, 2);
        let flood = join_all((0..300).map(|_| work(&turns, 1))).await;
        assert_eq!(flood.iter().flatten().count(), 200);
        let abandoned = timeout(WORK / 2, work(&turns, 1)).await;
        assert!(abandoned.is_err() && turns.keys.lock().is_empty());
    }
}
