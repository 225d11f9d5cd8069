//! What cannot or must not be opened is refused with an error that says why, and never says a password.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, KeyRange, Space};
use enjambre_core::storage::{Role, Storage};
use enjambre_storage_postgres::{PostgresSettings, Tenancy, TlsMode, open, remove};
use enjambre_tests::postgres::{PASSWORD, Server, USER, USER_WITH_PASSWORD, fresh_schema};
use enjambre_tests::wait::LONG;

const SPACE: Space = Space::new("s");

fn settings(server: &Server) -> PostgresSettings {
    PostgresSettings {
        url: server.url().try_into().unwrap(),
        connect_timeout: LONG,
        schema: Some(fresh_schema()),
        ..PostgresSettings::default()
    }
}

async fn shared(settings: &PostgresSettings) -> Result<Arc<dyn Storage>, StorageError> {
    open(settings, Path::new("/nonexistent"), Role::Records, Tenancy::Shared).await
}

fn put(name: &'static str) -> Batch {
    let mut batch = Batch::new();
    batch.put(SPACE, Key::new(name).unwrap(), name);
    batch
}

/// All that an error says, to whoever asks.
fn everything(error: &StorageError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!("; {error} {error:?}");
        source = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn formats_roles_and_schemas_of_others_are_refused() {
    let Some(server) = Server::shared("the opening of PostgreSQL") else { return };
    let settings = settings(&server);
    let schema = settings.schema.as_ref().unwrap();
    shared(&settings).await.unwrap().close().await.unwrap();
    server.sql(&format!("UPDATE {schema}.enjambre_format SET format = 2"));
    let error = shared(&settings).await.unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    server.sql(&format!("UPDATE {schema}.enjambre_format SET format = 1, purpose = 'content'"));
    let error = shared(&settings).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }) && error.to_string().contains(schema), "{error}");

    let theirs = PostgresSettings { schema: Some(fresh_schema()), ..settings.clone() };
    server
        .sql(&format!("CREATE SCHEMA {0}; CREATE TABLE {0}.theirs (x INT)", theirs.schema.as_ref().unwrap()));
    let error = shared(&theirs).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    let error = remove(&theirs, Path::new("/"), Role::Records, Tenancy::Shared).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    assert_eq!(
        server.sql(&format!("SELECT count(*) FROM {}.theirs", theirs.schema.as_ref().unwrap())).trim(),
        "0"
    );

    let missing = server.url().replace("/postgres", "/nothing").try_into().unwrap();
    let error = shared(&PostgresSettings { url: missing, ..settings.clone() }).await.unwrap_err();
    assert!(everything(&error).contains("nothing"), "{error}");
    for schema in ["", "Upper", "pg_catalog", "a-b", "x;drop table y"] {
        let error =
            shared(&PostgresSettings { schema: Some(schema.into()), ..settings.clone() }).await.unwrap_err();
        assert!(matches!(error, StorageError::Backend { .. }), "{error}");
    }
    remove(&settings, Path::new("/"), Role::Records, Tenancy::Shared).await.unwrap();
    shared(&settings).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_may_be_named_by_a_word_of_sql() {
    let Some(server) = Server::shared("names of schemas in PostgreSQL") else { return };
    for word in ["user", "select", "table"] {
        let settings = PostgresSettings { schema: Some(word.to_owned()), ..settings(&server) };
        let storage = shared(&settings).await.unwrap();
        for batch in [put("k"), put("k"), Batch::new()] {
            storage.commit(batch, Durability::Durable).await.unwrap();
        }
        assert_eq!(storage.scan(SPACE, KeyRange::all(), 10).await.unwrap().len(), 1);
        storage.close().await.unwrap();
        remove(&settings, Path::new("/"), Role::Records, Tenancy::Shared).await.unwrap();
        let left = server.sql(&format!("SELECT 1 FROM pg_namespace WHERE nspname = '{word}'"));
        assert_eq!(left.trim(), "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_open_a_new_schema_at_once() {
    let Some(server) = Server::shared("a race for a new schema of PostgreSQL") else { return };
    let settings = settings(&server);
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let settings = settings.clone();
        opening.spawn(async move {
            let storage = shared(&settings).await?;
            storage.commit(put("k"), Durability::Buffered).await?;
            storage.close().await
        });
    }
    for outcome in opening.join_all().await {
        outcome.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_come_from_a_file_or_the_environment_and_are_never_said() {
    let Some(server) = Server::shared("passwords of PostgreSQL") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let write = |text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let settings = PostgresSettings {
        url: server.url_for(USER_WITH_PASSWORD).try_into().unwrap(),
        password_file: Some("password".into()),
        ..settings(&server)
    };
    let open = async |settings: &PostgresSettings| {
        open(settings, folder.path(), Role::Records, Tenancy::Shared).await
    };
    write(&format!("{PASSWORD}\n"), 0o600);
    let storage = open(&settings).await.unwrap();
    assert!(!format!("{storage:?}").contains(PASSWORD) && !format!("{settings:?}").contains(PASSWORD));
    storage.close().await.unwrap();

    write("a wrong one", 0o600);
    let error = open(&settings).await.unwrap_err();
    let text = everything(&error);
    assert!(matches!(error, StorageError::Backend { .. }), "{text}");
    assert!(text.contains("password") && text.contains(USER_WITH_PASSWORD), "{text}");
    assert!(!text.contains("a wrong one"), "{text}");

    write(PASSWORD, 0o644);
    let error = everything(&open(&settings).await.unwrap_err());
    assert!(error.contains("chmod 600") && !error.contains(PASSWORD), "{error}");
    write("", 0o600);
    assert!(everything(&open(&settings).await.unwrap_err()).contains("empty"));

    let unset = PostgresSettings {
        password_file: None,
        password_env: Some("ENJAMBRE_NO_SUCH_PASSWORD".into()),
        ..settings.clone()
    };
    let error = everything(&open(&unset).await.unwrap_err());
    assert!(error.contains("ENJAMBRE_NO_SUCH_PASSWORD"), "{error}");
    let both = PostgresSettings { password_env: Some("HOME".into()), ..settings };
    assert!(everything(&open(&both).await.unwrap_err()).contains("both"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_has_one_owner_and_a_lost_claim_writes_nothing_more() {
    let Some(server) = Server::shared("owners in PostgreSQL") else { return };
    let settings = settings(&server);
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = async |folder: &tempfile::TempDir| {
        open(&settings, folder.path(), Role::Records, Tenancy::Single).await
    };
    let first = open(&here).await.unwrap();
    first.commit(put("a"), Durability::Durable).await.unwrap();
    for folder in [&here, &there] {
        let error = open(folder).await.unwrap_err();
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    }
    // As if it had said nothing for too long.
    server.sql(&format!(
        "UPDATE {}.enjambre_writers SET seen = now() - INTERVAL '10 minutes'",
        settings.schema.as_ref().unwrap()
    ));
    let second = open(&there).await.unwrap();
    for batch in [put("b"), Batch::new()] {
        let error = first.commit(batch, Durability::Durable).await.unwrap_err();
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    }
    second.commit(put("c"), Durability::Buffered).await.unwrap();
    let page = second.scan(SPACE, KeyRange::all(), 10).await.unwrap();
    assert_eq!(page.iter().map(|(_, value)| &value[..]).collect::<Vec<_>>(), [b"a", b"c"]);
    first.close().await.unwrap();
    assert!(matches!(open(&here).await, Err(StorageError::Locked { .. })), "the second one still has it");
    second.close().await.unwrap();
    open(&here).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_folder_has_a_store_of_its_own_beside_what_is_shared() {
    let Some(server) = Server::shared("stores in PostgreSQL") else { return };
    let settings = settings(&server);
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut open_ones = vec![shared(&settings).await.unwrap(), shared(&settings).await.unwrap()];
    for folder in [&here, &there] {
        for role in [Role::Records, Role::Content] {
            open_ones.push(open(&settings, folder.path(), role, Tenancy::PerFolder).await.unwrap());
        }
    }
    for storage in &open_ones[2..] {
        assert!(storage.scan(SPACE, KeyRange::all(), 1).await.unwrap().is_empty());
        storage.commit(put("k"), Durability::Buffered).await.unwrap();
    }
    for storage in open_ones {
        storage.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_unavailable_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgresql://u@{}/x", listener.local_addr().unwrap());
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    for tls in [TlsMode::Disable, TlsMode::Require] {
        let settings = PostgresSettings {
            url: url.clone().try_into().unwrap(),
            connect_timeout: Duration::from_millis(100),
            start_timeout: Duration::from_millis(1),
            tls: Some(tls),
            ..PostgresSettings::default()
        };
        let error =
            tokio::time::timeout(Duration::from_secs(60), shared(&settings)).await.unwrap().unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("100ms"), "{error}");
    }
    held.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_this_machine_can_be_reached_by_a_file() {
    let folder = std::env::temp_dir();
    let socket = format!("unix_socket_directories = '{}'", folder.display());
    let Some(server) = Server::start("a Unix socket of PostgreSQL", &socket) else { return };
    let url = format!("host={} port={} user={USER} dbname=postgres", folder.display(), server.port());
    // There is nobody in between.
    let settings =
        PostgresSettings { url: url.try_into().unwrap(), tls: Some(TlsMode::Require), ..settings(&server) };
    let storage = shared(&settings).await.unwrap();
    storage.commit(put("k"), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();
}
