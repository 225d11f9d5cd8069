//! Lists compete with lookups for the connections of a database.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::*;
use enjambre_core::{Batch, Durability, Key, KeyRange, Limits, Space, StorageError};

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

#[tokio::test(start_paused = true)]
async fn look_up_during_many_lists_waits_for_few_reads() {
    const FILES: u64 = 40;
    let database = storage();
    let writer = open(&database, START).await;
    let peer = session(&writer, 1, START).await;
    for n in 0..FILES {
        writer.publish(&peer, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let few: Arc<dyn Storage> =
        Arc::new(FewConnections { inner: database, connections: Semaphore::new(CONNECTIONS) });
    let catalogue = &open(&few, START).await;
    let lists = join_all((0..50).map(|_| catalogue.list("", None, 100, START, |_| None)));
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
