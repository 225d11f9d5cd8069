//! Login with a password, and TLS with certificates on both sides.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::{Durability, Place, Role, Storage, StorageError, Tenancy};
use enjambre_storage_etcd::{EtcdSettings, open};
use enjambre_tests::etcd::{OPTIONS, Server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::fixture::{A, insert, key, settings, text};

/// Writes a file that only its owner can read.
fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

async fn connect(settings: &EtcdSettings, folder: &Path) -> Result<Arc<dyn Storage>, StorageError> {
    open(settings, &Place::new(folder, Tenancy::Shared), Role::Records).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_needs_the_password_and_logs_in_again() {
    let Some(server) = Server::start("etcd with users", &OPTIONS) else { return };
    for command in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "enjambre:hunter2"],
        &["role", "add", "enjambre"],
        &["role", "grant-permission", "enjambre", "--prefix=true", "readwrite", "mine/"],
        &["user", "grant-role", "enjambre", "enjambre"],
        &["auth", "enable"],
    ] {
        server.control(command);
    }
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "password", "hunter2\n");
    write(folder.path(), "wrong", "hunter3\n");
    let mine = |user: Option<&str>, file: Option<&str>| EtcdSettings {
        prefix: Some("mine".to_owned()),
        user: user.map(str::to_owned),
        password_file: file.map(Into::into),
        ..settings(server.url())
    };
    let user = Some("enjambre");
    let other = EtcdSettings { prefix: Some("other".to_owned()), ..mine(user, Some("password")) };
    for (settings, why) in [
        (mine(None, None), "user name is empty"),
        (mine(user, None), "no password"),
        (mine(user, Some("wrong")), "authentication failed"),
        (other, "permission denied"),
    ] {
        let error = connect(&settings, folder.path()).await.unwrap_err();
        assert!(
            matches!(error, StorageError::Backend { .. }) && text(&error).contains(why),
            "{}",
            text(&error)
        );
    }
    let storage = connect(&mine(user, Some("password")), folder.path()).await.unwrap();
    storage.commit(insert(1, vec![1]), Durability::Durable).await.unwrap();
    // A restarted server does not know the token of the login any more.
    tokio::task::block_in_place(|| {
        server.kill();
        server.start_again();
    });
    assert_eq!(storage.get(A, &[key(1)]).await.unwrap(), [Some(vec![1].into())]);
    storage.commit(insert(2, vec![2]), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();
}

/// Returns a certificate and its key, signed by an issuer.
fn certificate(issuer: &Issuer<'_, KeyPair>) -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_and_client_verify_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["ours", "other"] {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        write(folder, &format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        for side in ["server", "client"] {
            let (certificate, key) = certificate(&issuer);
            write(folder, &format!("{name}-{side}.pem"), &certificate);
            write(folder, &format!("{name}-{side}.key"), &key);
        }
    }
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let options = [
        OPTIONS[0].to_owned(),
        OPTIONS[1].to_owned(),
        format!("--cert-file={}", path("ours-server.pem")),
        format!("--key-file={}", path("ours-server.key")),
        format!("--trusted-ca-file={}", path("ours.pem")),
        "--client-cert-auth".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let Some(server) = Server::start("etcd with TLS", &options) else { return };
    let with = |ca: &str, client: Option<&str>| EtcdSettings {
        ca: Some(format!("{ca}.pem").into()),
        cert: client.map(|name| format!("{name}-client.pem").into()),
        key: client.map(|name| format!("{name}-client.key").into()),
        start_timeout: Duration::from_millis(1),
        ..settings(server.url())
    };
    let storage = connect(&with("ours", Some("ours")), folder).await.unwrap();
    storage.commit(insert(1, vec![1]), Durability::Durable).await.unwrap();
    storage.close().await.unwrap();
    let error = connect(&with("other", Some("ours")), folder).await.unwrap_err();
    assert!(text(&error).contains("certificate"), "{}", text(&error));
    for client in [None, Some("other")] {
        let error = connect(&with("ours", client), folder).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{}", text(&error));
    }
}
