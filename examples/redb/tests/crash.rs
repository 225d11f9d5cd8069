//! Kills the process with `kill -9` during commits: acknowledged batches survive, and no batch is applied in part.

use enjambre_core::{Place, Role, Tenancy};
use enjambre_redb::{RedbSettings, open};
use enjambre_testkit::storage::crash::survive_kills;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redb_killed_keeps_acknowledged_commits() {
    survive_kills("redb_killed_keeps_acknowledged_commits", async |directory| {
        open(RedbSettings::default(), &Place::new(directory, Tenancy::Single), Role::Records).await
    })
    .await;
}
