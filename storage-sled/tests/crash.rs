//! Killed with `kill -9` while it commits, sled loses nothing acknowledged and tears nothing.

use enjambre_core::storage::Role;
use enjambre_core::storage::conformance::crash::survive_kills;
use enjambre_storage_sled::{SledSettings, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records() {
    survive_kills("records", async |folder| open(&SledSettings::default(), &folder, Role::Records).await)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content() {
    survive_kills("content", async |folder| open(&SledSettings::default(), &folder, Role::Content).await)
        .await;
}
