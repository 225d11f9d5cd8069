//! Several trackers on one database, on the in-memory storage and on PostgreSQL.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use enjambre_core::{Memory, Place, Role, Storage, Tenancy};
use enjambre_storage_postgres::{PostgresSettings, open};
use enjambre_tests::postgres::{Server, fresh_schema};
use enjambre_tests::several_trackers::{Connections, run_all};
use enjambre_tests::wait::TIMEOUT;

#[tokio::test]
async fn trackers_in_memory_are_consistent() {
    run_all(async || {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        [Arc::clone(&storage), Arc::clone(&storage), storage]
    })
    .await;
}

async fn connect(server: &Server, schema: String) -> Connections {
    let settings = PostgresSettings {
        url: server.url().try_into().unwrap(),
        connect_timeout: TIMEOUT,
        schema: Some(schema),
        connections: 2,
        ..PostgresSettings::default()
    };
    let place = Place::new(Path::new("/"), Tenancy::Shared);
    let connect = async || open(&settings, &place, Role::Records).await.unwrap();
    [connect().await, connect().await, connect().await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trackers_on_one_schema_are_consistent() {
    let Some(server) = Server::shared("several trackers on one PostgreSQL schema") else { return };
    run_all(async || connect(&server, fresh_schema()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trackers_on_different_schemas_are_separate() {
    let Some(server) = Server::shared("several PostgreSQL schemas") else { return };
    let number = AtomicU32::new(0);
    // Each case expects an empty catalogue.
    let connect = async |name: &str| {
        let schema = format!("{}_{name}{}", fresh_schema(), number.fetch_add(1, Ordering::Relaxed));
        connect(&server, schema).await
    };
    tokio::join!(run_all(async || connect("north").await), run_all(async || connect("south").await));
}
