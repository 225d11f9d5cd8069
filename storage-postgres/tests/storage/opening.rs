//! Opening of foreign, owned and unreachable schemas, and sources of the password.

use std::time::Duration;

use enjambre_core::{Batch, Durability, Key, KeyRange, Place, Role, Space, StorageError, Tenancy};
use enjambre_storage_postgres::{PostgresSettings, TlsMode, open, remove};
use enjambre_tests::postgres::{PASSWORD, Server, USER, USER_WITH_PASSWORD, fresh_schema};

use crate::fixture::{open_shared, settings, shared_place};

const SPACE: Space = Space::new("s");

fn put(name: &'static str) -> Batch {
    let mut batch = Batch::new();
    batch.put(SPACE, Key::new(name).unwrap(), name);
    batch
}

/// Returns all texts of an error and its sources.
fn full_text(error: &StorageError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!("; {error} {error:?}");
        source = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_schemas_are_refused() {
    let Some(server) = Server::shared("foreign schemas in PostgreSQL") else { return };
    let settings = settings(&server.url());
    open_shared(&settings).await.unwrap().close().await.unwrap();
    let content = open(&settings, &shared_place(), Role::Content).await.expect("content has its own schema");
    content.close().await.unwrap();

    let foreign = PostgresSettings { schema: Some(fresh_schema()), ..settings.clone() };
    server.sql(&format!(
        "CREATE SCHEMA {0}; CREATE TABLE {0}.foreign_table (x INT)",
        foreign.schema.as_ref().unwrap()
    ));
    let error = open_shared(&foreign).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    let error = remove(&foreign, &shared_place(), Role::Records).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    assert_eq!(
        server
            .sql(&format!("SELECT count(*) FROM {}.foreign_table", foreign.schema.as_ref().unwrap()))
            .trim(),
        "0"
    );

    let missing = server.url().replace("/postgres", "/nothing").try_into().unwrap();
    let error = open_shared(&PostgresSettings { url: missing, ..settings.clone() }).await.unwrap_err();
    assert!(full_text(&error).contains("nothing"), "{error}");
    for schema in ["", "Upper", "pg_catalog", "a-b", "x;drop table y"] {
        let error = open_shared(&PostgresSettings { schema: Some(schema.into()), ..settings.clone() })
            .await
            .unwrap_err();
        assert!(matches!(error, StorageError::Backend { .. }), "{error}");
    }
    remove(&settings, &shared_place(), Role::Records).await.unwrap();
    open_shared(&settings).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_name_may_be_a_reserved_word() {
    let Some(server) = Server::shared("schema names in PostgreSQL") else { return };
    for word in ["user", "select", "table"] {
        let settings = PostgresSettings { schema: Some(word.to_owned()), ..settings(&server.url()) };
        let storage = open_shared(&settings).await.unwrap();
        for batch in [put("k"), put("k"), Batch::new()] {
            storage.commit(batch, Durability::Durable).await.unwrap();
        }
        assert_eq!(storage.scan(SPACE, KeyRange::all(), 10).await.unwrap().len(), 1);
        storage.close().await.unwrap();
        remove(&settings, &shared_place(), Role::Records).await.unwrap();
        let left = server.sql(&format!("SELECT 1 FROM pg_namespace WHERE nspname = '{word}'"));
        assert_eq!(left.trim(), "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_schema_can_be_opened_concurrently() {
    let Some(server) = Server::shared("concurrent openings of a PostgreSQL schema") else { return };
    let settings = settings(&server.url());
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let settings = settings.clone();
        opening.spawn(async move {
            let storage = open_shared(&settings).await?;
            storage.commit(put("k"), Durability::Buffered).await?;
            storage.close().await
        });
    }
    for outcome in opening.join_all().await {
        outcome.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_sources_are_checked_and_redacted() {
    let Some(server) = Server::shared("PostgreSQL passwords") else { return };
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
        ..settings(&server.url())
    };
    let open = async |settings: &PostgresSettings| {
        open(settings, &Place::new(folder.path(), Tenancy::Shared), Role::Records).await
    };
    write(&format!("{PASSWORD}\n"), 0o600);
    let storage = open(&settings).await.unwrap();
    assert!(!format!("{storage:?}").contains(PASSWORD) && !format!("{settings:?}").contains(PASSWORD));
    storage.close().await.unwrap();

    write("a wrong one", 0o600);
    let error = open(&settings).await.unwrap_err();
    let text = full_text(&error);
    assert!(matches!(error, StorageError::Backend { .. }), "{text}");
    assert!(text.contains("password") && text.contains(USER_WITH_PASSWORD), "{text}");
    assert!(!text.contains("a wrong one"), "{text}");

    write(PASSWORD, 0o644);
    let error = full_text(&open(&settings).await.unwrap_err());
    assert!(error.contains("chmod 600") && !error.contains(PASSWORD), "{error}");
    write("", 0o600);
    assert!(full_text(&open(&settings).await.unwrap_err()).contains("empty"));

    let unset = PostgresSettings {
        password_file: None,
        password_env: Some("ENJAMBRE_NO_SUCH_PASSWORD".into()),
        ..settings.clone()
    };
    let error = full_text(&open(&unset).await.unwrap_err());
    assert!(error.contains("ENJAMBRE_NO_SUCH_PASSWORD"), "{error}");
    let both = PostgresSettings { password_env: Some("HOME".into()), ..settings };
    assert!(full_text(&open(&both).await.unwrap_err()).contains("both"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_has_one_owner_and_lost_owner_cannot_write() {
    let Some(server) = Server::shared("schema owners in PostgreSQL") else { return };
    let settings = settings(&server.url());
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = async |folder: &tempfile::TempDir| {
        open(&settings, &Place::new(folder.path(), Tenancy::Single), Role::Records).await
    };
    let first = open(&here).await.unwrap();
    first.commit(put("a"), Durability::Durable).await.unwrap();
    for folder in [&here, &there] {
        let error = open(folder).await.unwrap_err();
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    }
    // As if another process had taken the claim over.
    server.sql(&format!(
        "DELETE FROM {}.space_enjambre_storage WHERE key = 'owner'",
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
    assert!(
        matches!(open(&here).await, Err(StorageError::Locked { .. })),
        "the second storage owns the schema"
    );
    second.close().await.unwrap();
    open(&here).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_stores_are_separate_for_each_data_directory() {
    let Some(server) = Server::shared("replica stores in PostgreSQL") else { return };
    let settings = settings(&server.url());
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut storages = vec![open_shared(&settings).await.unwrap(), open_shared(&settings).await.unwrap()];
    for folder in [&here, &there] {
        for role in [Role::Records, Role::Content] {
            storages
                .push(open(&settings, &Place::new(folder.path(), Tenancy::PerFolder), role).await.unwrap());
        }
    }
    for storage in &storages[2..] {
        assert!(storage.scan(SPACE, KeyRange::all(), 1).await.unwrap().is_empty());
        storage.commit(put("k"), Durability::Buffered).await.unwrap();
    }
    for storage in storages {
        storage.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unresponsive_server_is_unavailable_after_timeout() {
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
            tokio::time::timeout(Duration::from_secs(60), open_shared(&settings)).await.unwrap().unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("100ms"), "{error}");
    }
    held.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_connects_without_tls() {
    let folder = std::env::temp_dir();
    let socket = format!("unix_socket_directories = '{}'", folder.display());
    let Some(server) = Server::start("PostgreSQL on a Unix socket", &socket) else { return };
    let url = format!("host={} port={} user={USER} dbname=postgres", folder.display(), server.port());
    // TLS is not used on a Unix socket.
    let settings = PostgresSettings {
        url: url.try_into().unwrap(),
        tls: Some(TlsMode::Require),
        ..settings(&server.url())
    };
    let storage = open_shared(&settings).await.unwrap();
    storage.commit(put("k"), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();
}
