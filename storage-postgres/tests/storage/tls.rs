//! Encrypted connections and the verification of the server certificate.

use std::path::Path;
use std::sync::Arc;

use enjambre_core::{Place, Role, Storage, StorageError, Tenancy};
use enjambre_storage_postgres::{PostgresSettings, TlsMode, open};
use enjambre_tests::postgres::{Server, Stop, USER};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::fixture::settings;

/// Returns the certificate of a new authority, and its issuer.
fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_verified_server_is_accepted() {
    let Some(server) = Server::start("PostgreSQL with TLS", "") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (ca, issuer) = authority("ours");
    std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
    std::fs::write(folder.path().join("other.pem"), authority("other").0).unwrap();
    std::fs::write(folder.path().join("empty.pem"), "nothing").unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();

    let connect = async |host: &str, tls: Option<TlsMode>, ca: Option<&str>| {
        let url = format!("postgresql://{USER}@{host}:{}/postgres", server.port());
        let settings = PostgresSettings { tls, ca: ca.map(Into::into), ..settings(&url) };
        let folder: &Path = folder.path();
        open(&settings, &Place::new(folder, Tenancy::Shared), Role::Records).await
    };
    let refused = |outcome: Result<Arc<dyn Storage>, StorageError>, why: &str| {
        let error = outcome.unwrap_err();
        let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(matches!(error, StorageError::Backend { .. }) && text.contains(why), "{text}");
    };
    let (require, prefer) = (Some(TlsMode::Require), Some(TlsMode::Prefer));

    // The server does not support TLS yet.
    connect("localhost", None, None).await.unwrap().close().await.unwrap();
    connect("localhost", prefer, Some("ca.pem")).await.unwrap().close().await.unwrap();
    refused(connect("localhost", require, Some("ca.pem")).await, "does not support TLS");
    refused(connect("localhost", require, Some("missing.pem")).await, "No such file");
    refused(connect("localhost", require, Some("empty.pem")).await, "contains no certificates");

    server.put_file("server.pem", &certificate.pem());
    server.put_file("server.key", &key.serialize_pem());
    server.set("ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'");
    tokio::task::block_in_place(|| {
        server.stop(Stop::Fast);
        server.start_again();
    });
    for tls in [require, prefer] {
        let storage = connect("localhost", tls, Some("ca.pem")).await.unwrap();
        let encrypted = server.sql(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE ssl AND version = 'TLSv1.3' AND application_name = 'enjambre'",
        );
        assert_ne!(encrypted.trim(), "0");
        storage.close().await.unwrap();
        refused(connect("localhost", tls, Some("other.pem")).await, "UnknownIssuer");
        refused(connect("localhost", tls, None).await, "UnknownIssuer");
        refused(connect("127.0.0.1", tls, Some("ca.pem")).await, "not valid for name");
    }
    connect("localhost", Some(TlsMode::Disable), None).await.unwrap().close().await.unwrap();
}
