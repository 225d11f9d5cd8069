//! Killed with `kill -9` while it commits, it loses nothing acknowledged and tears nothing.

use enjambre_core::storage::Role;
use enjambre_core::storage::conformance::crash::survive_kills;
use enjambre_journal::open;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_survives_kills() {
    survive_kills("it_survives_kills", async |folder| {
        open(&folder.join("test.journal"), Role::Records).await
    })
    .await;
}
