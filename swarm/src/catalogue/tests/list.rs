//! Large requests compete with lookups for the connections of a database.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::*;
use crate::catalogue::error::CatalogueError;
use enjambre_core::{Batch, Durability, Key, KeyRange, Limits, Offer, Space, StorageError};

/// The time of each read.
const READ: Duration = Duration::from_millis(10);
const CONNECTIONS: usize = 8;

/// A database with few connections, which serves requests in the order of their arrival.
#[derive(Debug)]
struct FewConnections {
    inner: Arc<dyn Storage>,
    connections: Semaphore,
}

impl FewConnections {
    async fn read<T>(&self, read: impl Future<Output = T>) -> T {
        let _connection = self.connections.acquire().await.unwrap();
        sleep(READ).await;
        read.await
    }
}

#[async_trait]
impl Storage for FewConnections {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.read(self.inner.get(space, keys)).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.read(self.inner.scan(space, range, limit)).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.inner.commit(batch, durability).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.inner.sync().await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }
}

/// A catalogue with `files` files in a database with few connections.
async fn few_connections(files: u64) -> Catalogue {
    let database = storage();
    let writer = open(&database, START).await;
    let peer = session(&writer, 1, START).await;
    for n in 0..files {
        writer.publish(&peer, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let few: Arc<dyn Storage> =
        Arc::new(FewConnections { inner: database, connections: Semaphore::new(CONNECTIONS) });
    open(&few, START).await
}

#[tokio::test(start_paused = true)]
async fn lists_of_one_address_do_not_delay_others() {
    let catalogue = &few_connections(40).await;
    let list = |address| catalogue.list("", None, 100, Some(IpAddr::from(address)), START, |_| None);
    let flood = join_all((0..50).map(|_| list([10, 0, 0, 1])));
    let other = async {
        sleep(READ / 2).await;
        let began = Instant::now();
        assert_eq!(list([10, 0, 0, 2]).await.unwrap().files.len(), 40);
        began.elapsed()
    };
    let (flood, other) = tokio::join!(flood, other);
    assert!(flood.iter().all(|list| list.as_ref().unwrap().files.len() == 40));
    // A scan and, two at a time, the claims and leases of each file, none of which waits for the flood.
    assert!(other <= READ + 40 * READ, "{other:?}");
}

#[tokio::test]
async fn page_of_a_list_counts_a_bounded_number_of_claims() {
    const FILES: u64 = 30;
    let catalogue = open(&storage(), START).await;
    let publisher = session(&catalogue, 1, START).await;
    for n in 0..FILES {
        catalogue.publish(&publisher, &publication(&format!("n{n:02}"), file(n)), START).await.unwrap();
    }
    let offers: Vec<_> = (0..FILES).map(|n| Offer { id: file(n), size: 10, complete: true }).collect();
    for n in 0..900 {
        let peer = PeerId::from_bytes(*file(n).as_bytes());
        let id = catalogue.open_session(peer, Vec::new(), START).await.unwrap();
        let session = catalogue.authorize(id, START).await.unwrap();
        catalogue.announce(&session, &offers, START).await.unwrap();
    }
    let page = catalogue.list("", None, 1000, None, START, |_| None).await.unwrap();
    assert_eq!(page.files.len(), 23, "20,000 of 901 claims each");
    assert_eq!(all(&catalogue, "", 1000).await.len() as u64, FILES);
}

#[tokio::test(start_paused = true)]
async fn look_up_during_many_lists_waits_for_few_reads() {
    const FILES: u64 = 40;
    let catalogue = &few_connections(FILES).await;
    let lists = join_all((0..50).map(|_| catalogue.list("", None, 100, None, START, |_| None)));
    let lookups = async {
        let mut longest = Duration::ZERO;
        for n in 0..FILES {
            // All lists are in progress.
            sleep(READ / 2).await;
            let began = Instant::now();
            assert_eq!(catalogue.find(&format!("n{n}"), START).await.unwrap().id, file(n));
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let (lists, longest) = tokio::join!(lists, lookups);
    assert!(lists.iter().all(|list| list.as_ref().unwrap().files.len() as u64 == FILES));
    // Version, claims and leases are read one after the other, each without waiting for a list.
    assert!(longest <= 6 * READ, "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn look_up_during_large_announcements_waits_for_few_reads() {
    const FILES: u64 = 40;
    let catalogue = &few_connections(FILES).await;
    let mut peers = Vec::new();
    for n in 2..10 {
        peers.push(session(catalogue, n, START).await);
    }
    let offers: &Vec<_> = &(100..200).map(|n| Offer { id: file(n), size: 10, complete: true }).collect();
    // From two addresses.
    let announcements = join_all((0..96).map(async |n| {
        let peer = &peers[n % peers.len()];
        let announced = catalogue.announce(peer, offers, START);
        let address = IpAddr::from([10, 0, 0, (n % 2) as u8]);
        catalogue.change_in_turn(peer, Some(address), offers.len(), announced).await
    }));
    let lookups = async {
        let mut longest = Duration::ZERO;
        for n in 0..FILES / 4 {
            sleep(READ / 2).await;
            let began = Instant::now();
            assert_eq!(catalogue.find(&format!("n{n}"), START).await.unwrap().id, file(n));
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let (announced, longest) = tokio::join!(announcements, lookups);
    assert!(announced.iter().all(|unknown| unknown.as_ref().unwrap().len() == offers.len()));
    assert!(longest <= 6 * READ, "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn peer_with_many_announcements_does_not_delay_its_neighbour() {
    let catalogue = &few_connections(1).await;
    let (hostile, neighbour) = (&session(catalogue, 2, START).await, &session(catalogue, 3, START).await);
    let announce = async |peer| {
        let began = Instant::now();
        let address = IpAddr::from([10, 0, 0, 1]);
        let work = async {
            sleep(READ).await;
            Ok(())
        };
        catalogue.change_in_turn(peer, Some(address), 800, work).await.map(|()| began.elapsed())
    };
    let flood = join_all((0..1000).map(|_| announce(hostile)));
    let (flood, other) = tokio::join!(flood, announce(neighbour));
    assert_eq!(other.unwrap(), READ);
    assert!(flood.iter().any(|done| matches!(done, Err(CatalogueError::Busy))), "{flood:?}");
}
