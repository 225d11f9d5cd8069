//! The section `[storage.etcd]` of the configuration. It contains no password, only its source.

use std::path::PathBuf;
use std::time::Duration;

use enjambre_core::model::time::text;
use serde::{Deserialize, Serialize};

/// The settings of the etcd storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EtcdSettings {
    /// The members of the cluster, `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// The first part of all keys, before a slash: 1 to 32 lower-case letters, digits and underscores. Content and replicas use
    /// further ones that start with it. The default is `enjambre_catalogue` for trackers and `enjambre_library` for peers.
    pub prefix: Option<String>,
    /// Whether to remove the history of the cluster that is older than 10 minutes, every 10 minutes. Set it to `false` if the
    /// cluster has its own automatic compaction.
    pub compact: bool,
    /// The timeout of the connection to a member. The next member is tried after it.
    #[serde(with = "text")]
    pub connect_timeout: Duration,
    /// How long the start waits for an unreachable cluster.
    #[serde(with = "text")]
    pub start_timeout: Duration,
    /// The timeout of a request.
    #[serde(with = "text")]
    pub timeout: Duration,
    /// The user, if the cluster requires one.
    pub user: Option<String>,
    /// The environment variable that contains the password. The default is `ETCDCTL_PASSWORD`, unless `password_file` is set.
    pub password_env: Option<String>,
    /// The file that contains the password, relative to the data directory. Only its owner may have access.
    pub password_file: Option<PathBuf>,
    /// The certificate authorities of the members, a PEM file relative to the data directory. The default is the certificate
    /// store of the system.
    pub ca: Option<PathBuf>,
    /// The certificate of this client, a PEM file relative to the data directory.
    pub cert: Option<PathBuf>,
    /// The private key of the certificate, a PEM file relative to the data directory. Only its owner may have access.
    pub key: Option<PathBuf>,
}

impl Default for EtcdSettings {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://localhost:2379".to_owned()],
            prefix: None,
            compact: true,
            connect_timeout: Duration::from_secs(3),
            start_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            user: None,
            password_env: None,
            password_file: None,
            ca: None,
            cert: None,
            key: None,
        }
    }
}
