//! The section `[storage.postgres]` of the configuration. It contains no password, only its source.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::server_url::ServerUrl;

/// The settings of the PostgreSQL storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// The servers, the user and the database, without a password.
    pub url: ServerUrl,
    /// The schema of the tables: 1 to 32 lower-case letters, digits and underscores. Content and replicas use further
    /// schemas whose names start with it. The default is `enjambre_catalogue` for trackers and `enjambre_library` for
    /// peers.
    pub schema: Option<String>,
    /// The maximum number of connections for reads. Writes use one more connection, or two if the schema is shared.
    pub connections: usize,
    /// The timeout for one address of a server until its connection is ready. The next address is tried after it.
    #[serde(with = "enjambre_core::model::time::text")]
    pub connect_timeout: Duration,
    /// How long the start waits for an unreachable server.
    #[serde(with = "enjambre_core::model::time::text")]
    pub start_timeout: Duration,
    /// The timeout of a statement, and of the acquisition of a connection.
    #[serde(with = "enjambre_core::model::time::text")]
    pub timeout: Duration,
    /// The environment variable that contains the password. The default is `PGPASSWORD`, unless `password_file` is set.
    pub password_env: Option<String>,
    /// The file that contains the password, relative to the data directory. Only its owner may have access.
    pub password_file: Option<PathBuf>,
    /// The encryption of connections. By default connections to this machine are not encrypted and all others are.
    pub tls: Option<TlsMode>,
    /// The certificate authorities of the server, a PEM file relative to the data directory. The default is the
    /// certificate store of the system.
    pub ca: Option<PathBuf>,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            url: ServerUrl::try_from("postgresql://enjambre@localhost/enjambre".to_owned())
                .expect("the default is a valid URL without a password"),
            schema: None,
            connections: 8,
            connect_timeout: Duration::from_secs(3),
            start_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            password_env: None,
            password_file: None,
            tls: None,
            ca: None,
        }
    }
}

/// The encryption of connections. An encrypted connection always verifies the certificate and the name of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Refuse unencrypted connections.
    Require,
    /// Encrypt if the server supports it. This does not protect against an active attacker, who can suppress the offer.
    Prefer,
    /// Never encrypt.
    Disable,
}
