//! Opening: limits of the server, unavailable members, the removal of a database, and the shipped configuration.

use std::path::Path;
use std::time::Duration;

use enjambre_core::{Durability, Place, Role, StorageError, Tenancy};
use enjambre_storage_etcd::{EtcdSettings, remove};
use enjambre_tests::etcd::{OPTIONS, Server};

use crate::fixture::{A, insert, key, open_shared, settings, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_small_limits_of_the_server_are_reported_with_the_option() {
    let [operations, bytes] = OPTIONS;
    for (given, missing) in [(bytes, "--max-txn-ops=5001"), (operations, "--max-request-bytes=10000000")] {
        let Some(server) = Server::start("etcd with default limits", &[given]) else { return };
        let error = open_shared(&settings(server.url())).await.unwrap_err();
        let text = text(&error);
        assert!(matches!(error, StorageError::Backend { .. }) && text.contains(missing), "{text}");
    }
    let exact = ["--max-txn-ops=5001", "--max-request-bytes=10000000"];
    let server = Server::start("etcd with sufficient limits", &exact).unwrap();
    open_shared(&settings(server.url())).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_member_is_skipped() {
    let Some(server) = Server::shared("etcd with an unavailable member") else { return };
    let mut settings = settings(server.url());
    // Nothing listens on port 1.
    settings.endpoints.insert(0, "http://127.0.0.1:1".to_owned());
    let storage = open_shared(&settings).await.unwrap();
    storage.commit(insert(1, vec![1]), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();

    let start_timeout = Duration::from_millis(1);
    let settings = EtcdSettings { endpoints: settings.endpoints[..1].to_vec(), start_timeout, ..settings };
    let error = open_shared(&settings).await.unwrap_err();
    let text = text(&error);
    assert!(matches!(error, StorageError::Unavailable { .. }), "{text}");
    assert!(text.contains("http://127.0.0.1:1") && text.contains("refused"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_keeps_other_databases() {
    let Some(server) = Server::shared("removal from etcd") else { return };
    let [removed, kept] = [settings(server.url()), settings(server.url())];
    for settings in [&removed, &kept] {
        let storage = open_shared(settings).await.unwrap();
        storage.commit(insert(1, vec![1]), Durability::Durable).await.unwrap();
        storage.close().await.unwrap();
    }
    remove(&removed, &Place::new(Path::new("/"), Tenancy::Shared), Role::Records).await.unwrap();
    for (settings, expected) in [(&removed, None), (&kept, Some(vec![1].into()))] {
        let storage = open_shared(settings).await.unwrap();
        assert_eq!(storage.get(A, &[key(1)]).await.unwrap(), [expected]);
        storage.close().await.unwrap();
    }
}

#[test]
fn settings_of_the_shipped_configuration_are_valid() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tracker-etcd.toml");
    let text = std::fs::read_to_string(file).unwrap();
    // Commented settings as well.
    let uncommented = |line: &str| {
        let setting = line.strip_prefix("# ")?;
        let (name, _) = setting.split_once(" = ")?;
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then(|| setting.to_owned())
    };
    let all: Vec<String> =
        text.lines().map(|line| uncommented(line).unwrap_or_else(|| line.to_owned())).collect();
    for text in [text.clone(), all.join("\n")] {
        let table: toml::Table = text.parse().unwrap();
        let settings: EtcdSettings = table["storage"]["etcd"].clone().try_into().unwrap();
        assert_eq!(settings.endpoints, EtcdSettings::default().endpoints);
    }
}
