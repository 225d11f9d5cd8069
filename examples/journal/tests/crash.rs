//! Kills the process with `kill -9` during commits: acknowledged batches survive, and no batch is applied in part.

use enjambre_core::{Place, Role, Tenancy};
use enjambre_journal::{JournalSettings, open};
use enjambre_testkit::storage::crash::survive_kills;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_killed_keeps_acknowledged_commits() {
    survive_kills("journal_killed_keeps_acknowledged_commits", async |directory| {
        open(&JournalSettings::default(), &Place::new(directory, Tenancy::Single), Role::Records).await
    })
    .await;
}
