//! The retry layer on PostgreSQL: conformance, and an outage of the server.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::layers::retry::{Retry, RetryStorage};
use enjambre_core::{Durability, Role, Storage, StorageError, Tenancy};
use enjambre_testkit::storage::{Builder, run_all};
use enjambre_tests::postgres::{Server, Stop};
use enjambre_tests::wait::TIMEOUT;

use crate::conformance::Postgres;
use crate::fixture::{A, insert, is_inserted, key, open_shared, settings};

struct WithRetry(Postgres);

impl Builder for WithRetry {
    type Place = <Postgres as Builder>::Place;

    fn place(&self) -> Self::Place {
        self.0.place()
    }

    async fn open(&self, place: &Self::Place) -> Result<Arc<dyn Storage>, StorageError> {
        let retry = Retry { timeout: Some(Duration::from_secs(60)), retries: 3 };
        Ok(Arc::new(RetryStorage::new(self.0.open(place).await?, retry)))
    }

    fn is_shared(&self, place: &Self::Place) -> bool {
        self.0.is_shared(place)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_layer_passes_the_conformance_kit() {
    let Some(server) = Server::shared("conformance of the retry layer on PostgreSQL") else { return };
    run_all(&WithRetry(Postgres(server, Role::Records, Tenancy::Shared))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_layer_bridges_an_outage() {
    let Some(server) = Server::start("retry layer during a PostgreSQL outage", "") else { return };
    let bare = open_shared(&settings(&server.url())).await.unwrap();
    bare.commit(insert(0), Durability::Durable).await.unwrap();
    let retry = Retry { timeout: Some(2 * TIMEOUT), retries: u32::MAX };
    let retrying = RetryStorage::new(bare.clone(), retry);
    tokio::task::block_in_place(|| server.stop(Stop::Fast));

    let keys = [key(0)];
    let mut calls =
        pin!(async { tokio::join!(retrying.get(A, &keys), retrying.commit(insert(1), Durability::Durable)) });
    for _ in 0..3 {
        tokio::select! {
            biased;
            outcome = &mut calls => panic!("the server is stopped: {outcome:?}"),
            outcome = bare.get(A, &keys) => {
                assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
            }
        }
    }
    let outcome = retrying.sync().await;
    assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "a sync is not retried: {outcome:?}");
    tokio::task::block_in_place(|| server.start_again());
    let (read, committed) = calls.await;
    assert!(read.unwrap()[0].is_some());
    committed.unwrap();
    retrying.sync().await.unwrap();
    assert!(is_inserted(&*bare, 1).await);
    bare.close().await.unwrap();
}
