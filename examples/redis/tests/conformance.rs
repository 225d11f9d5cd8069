//! The storage conformance test suite on a Redis server, and crashes of the server.

mod server;

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::{Batch, Durability, Key, Place, Role, Space, Storage, StorageError, Tenancy};
use enjambre_redis::{RedisSettings, open};
use enjambre_testkit::storage::{Builder, run_all};
use server::Server;
use tempfile::TempDir;

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
    let folder = TempDir::new().expect("temporary directory");
    let storage = open(&server.settings(), &Place::new(folder.path(), Tenancy::Shared), Role::Records)
        .await
        .expect("the server runs");
    let key = |number: u32| Key::new(number.to_be_bytes().to_vec()).expect("a valid key");
    let (mut acknowledged, mut number) = (Vec::new(), 0);
    for _ in 0..5 {
        let writer = storage.clone();
        let first = number;
        let commits = tokio::spawn(async move {
            let mut written = Vec::new();
            for number in first.. {
                let mut batch = Batch::new();
                batch.require_absent(SPACE, key(number)).put(SPACE, key(number), "v");
                match writer.commit(batch, Durability::Buffered).await {
                    Ok(()) => written.push(number),
                    Err(StorageError::Unavailable { .. } | StorageError::Indeterminate { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            written
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.kill();
        let written = commits.await.expect("the commits end");
        number += written.len() as u32 + 1;
        acknowledged.extend(written);
        server.start_again();
    }
    assert!(acknowledged.len() > 5, "{} commits", acknowledged.len());
    let keys: Vec<Key> = acknowledged.iter().map(|number| key(*number)).collect();
    let values = storage.get(SPACE, &keys).await.expect("the server runs");
    assert!(values.iter().all(Option::is_some), "an acknowledged commit is lost");
    storage.close().await.expect("the server runs");
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
