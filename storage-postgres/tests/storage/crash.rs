//! The crash level of the suite: `kill -9` during commits loses nothing acknowledged and leaves no partial batch.

use std::os::unix::process::parent_id;
use std::path::PathBuf;

use enjambre_core::{Place, Role, Tenancy};
use enjambre_storage_postgres::{PostgresSettings, open};
use enjambre_testkit::storage::crash::survive_kills;
use enjambre_tests::postgres::{Server, fresh_schema};
use enjambre_tests::wait::TIMEOUT;

/// The file that tells the victims of a test, which are child processes, the server and the schema.
fn parameters_file(process: u32, role: Role) -> PathBuf {
    std::env::temp_dir().join(format!("enjambre-postgres-crash-{process}-{role:?}"))
}

/// `test` is the full name of the calling test, which the victims run.
async fn run(test: &str, role: Role, tenancy: Tenancy) {
    let parameters = std::fs::read_to_string(parameters_file(parent_id(), role)).ok();
    let server = if parameters.is_some() { None } else { Server::shared(test) };
    let (url, schema) = match (&parameters, &server) {
        (Some(parameters), _) => {
            parameters.split_once('\n').map(|(url, schema)| (url.to_owned(), schema.to_owned())).unwrap()
        }
        (None, Some(server)) => (server.url(), fresh_schema()),
        (None, None) => return,
    };
    let own_file = parameters_file(std::process::id(), role);
    if server.is_some() {
        std::fs::write(&own_file, format!("{url}\n{schema}")).unwrap();
    }
    let settings = PostgresSettings {
        url: url.try_into().unwrap(),
        schema: Some(schema),
        connect_timeout: TIMEOUT,
        ..PostgresSettings::default()
    };
    survive_kills(test, async |folder| open(&settings, &Place::new(folder, tenancy), role).await).await;
    let _ = std::fs::remove_file(own_file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_survive_kills() {
    run("crash::records_survive_kills", Role::Records, Tenancy::Shared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_survives_kills() {
    run("crash::content_survives_kills", Role::Content, Tenancy::Single).await;
}
