//! The storage conformance test suite on a Redis server, and crashes of the server.

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use enjambre_core::{Batch, Durability, Key, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_redis::{RedisSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use server::Server;
use tempfile::TempDir;

/// The delay between the attempts of a retry loop.
const POLL: Duration = Duration::from_millis(2);

/// Databases of a role at one server. Each place has a name of its own.
struct Redis<'a>(&'a Server, Role, Tenancy);

impl Builder for Redis<'_> {
    type Place = (RedisSettings, TempDir);

    fn place(&self) -> Self::Place {
        (self.0.settings(), TempDir::new().expect("temporary directory"))
    }

    async fn open(&self, (settings, folder): &Self::Place) -> Result<Arc<dyn Storage>, StorageError> {
        open(settings, &Place::new(folder.path(), self.2), self.1).await
    }

    fn is_shared(&self, _: &Self::Place) -> bool {
        self.2 == Tenancy::Shared
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_passes_conformance_kit() {
    let Some(server) = Server::start(&[]) else { return };
    run_all(&Redis(&server, Role::Records, Tenancy::Shared)).await;
    run_all(&Redis(&server, Role::Content, Tenancy::Single)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_loses_no_acknowledged_commit() {
    const SPACE: Space = Space::new("s");
    let Some(mut server) = Server::start(&[]) else { return };
    let place = Place::new("/nonexistent", Tenancy::Shared);
    let storage = open(&server.settings(), &place, Role::Records).await.expect("the server runs");
    let key = |number: u32| Key::new(number.to_be_bytes().to_vec()).expect("a valid key");
    let (acknowledged, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = {
        let (storage, acknowledged, ends) = (storage.clone(), acknowledged.clone(), ends.clone());
        tokio::spawn(async move {
            let (mut written, mut number) = (Vec::new(), 0);
            while !ends.load(Ordering::Acquire) {
                let mut batch = Batch::new();
                batch.require_absent(SPACE, key(number)).put(SPACE, key(number), "v");
                match storage.commit(batch, Durability::Buffered).await {
                    Ok(()) => {
                        written.push(key(number));
                        acknowledged.store(written.len(), Ordering::Release);
                        number += 1;
                    }
                    Err(StorageError::Indeterminate { .. }) => number += 1,
                    // Not applied, so that it does not conflict when it is repeated.
                    Err(StorageError::Unavailable { .. }) => tokio::time::sleep(POLL).await,
                    Err(error) => panic!("commit {number}: {error}"),
                }
            }
            written
        })
    };
    for round in 1..=5 {
        wait_until(|| acknowledged.load(Ordering::Acquire) >= 20 * round || writer.is_finished()).await;
        server.kill();
        server.start_again();
    }
    wait_until(|| acknowledged.load(Ordering::Acquire) >= 120 || writer.is_finished()).await;
    ends.store(true, Ordering::Release);
    let written = writer.await.expect("no commit fails otherwise");
    let values = storage.get(SPACE, &written).await.expect("the server runs");
    assert!(values.iter().all(Option::is_some), "an acknowledged commit is lost");
    storage.close().await.expect("the server runs");
}

/// Waits for a change made by another task.
async fn wait_until(reached: impl Fn() -> bool) {
    let all = async {
        while !reached() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("the condition becomes true in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_may_lose_data_is_refused() {
    for (setting, value) in [
        ("appendfsync", "everysec"),
        ("appendonly", "no"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
    ] {
        let Some(server) = Server::start(&[setting, value]) else { return };
        let place = Place::new("/nonexistent", Tenancy::Shared);
        let error = open(&server.settings(), &place, Role::Records).await.expect_err("refused");
        let source = std::error::Error::source(&error).expect("a source").to_string();
        assert!(source.contains(setting), "{source}");
    }
}
