//! The crash level of the suite: `kill -9` during commits loses nothing acknowledged and leaves no partial batch.

use enjambre_core::{Place, Role, Tenancy};
use enjambre_storage_sqlite::{SqliteSettings, open};
use enjambre_testkit::storage::crash::survive_kills;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_survive_kills() {
    survive_kills("crash::records_survive_kills", async |folder| {
        open(&SqliteSettings::default(), &Place::new(folder, Tenancy::Single), Role::Records).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_survives_kills() {
    survive_kills("crash::content_survives_kills", async |folder| {
        open(&SqliteSettings::default(), &Place::new(folder, Tenancy::Single), Role::Content).await
    })
    .await;
}
