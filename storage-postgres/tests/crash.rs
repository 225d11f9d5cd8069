//! Killed with `kill -9` while it commits, a process with PostgreSQL loses nothing acknowledged and tears nothing.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::os::unix::process::parent_id;
use std::path::PathBuf;

use enjambre_core::storage::Role;
use enjambre_core::storage::conformance::crash::survive_kills;
use enjambre_storage_postgres::{PostgresSettings, Tenancy, open};
use enjambre_tests::postgres::{Server, fresh_schema};
use enjambre_tests::wait::LONG;

/// Where a test tells its victims, which are processes of their own, the server and the schema.
fn note(process: u32, test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("enjambre-postgres-crash-{process}-{test}"))
}

async fn run(test: &str, role: Role, tenancy: Tenancy) {
    let told = std::fs::read_to_string(note(parent_id(), test)).ok();
    let server = if told.is_some() { None } else { Server::shared(test) };
    let (url, schema) = match (&told, &server) {
        (Some(told), _) => {
            told.split_once('\n').map(|(url, schema)| (url.to_owned(), schema.to_owned())).unwrap()
        }
        (None, Some(server)) => (server.url(), fresh_schema()),
        (None, None) => return,
    };
    if server.is_some() {
        std::fs::write(note(std::process::id(), test), format!("{url}\n{schema}")).unwrap();
    }
    let settings = PostgresSettings {
        url: url.try_into().unwrap(),
        schema: Some(schema),
        connect_timeout: LONG,
        ..PostgresSettings::default()
    };
    survive_kills(test, async |folder| open(&settings, &folder, role, tenancy).await).await;
    let _ = std::fs::remove_file(note(std::process::id(), test));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared() {
    run("shared", Role::Records, Tenancy::Shared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single() {
    run("single", Role::Content, Tenancy::Single).await;
}
