//! The sections of the configuration and their defaults.
//!
//! A component receives its own section, never the whole configuration. Serialization includes every field, so the
//! serialized defaults are also the list of the known keys.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use enjambre_core::Endpoint;
use enjambre_swarm::tracker::settings::DEFAULT_SESSIONS_PER_ADDRESS;
use serde::{Deserialize, Serialize};

use super::value::{AuthorityKey, ListenAddress, Rate, Size, Span, Timeout};

/// The kind of a node. A few defaults depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Stores the catalogue.
    Tracker,
    /// Publishes, downloads and seeds files.
    Peer,
}

/// A complete configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Settings of `enjambre tracker`.
    pub tracker: TrackerSection,
    /// Settings of `enjambre peer` and of all commands that work on files.
    pub peer: PeerSection,
    /// Membership of the swarm.
    pub swarm: SwarmSection,
    /// Endpoints, and limits per remote.
    pub transport: TransportSection,
    /// Content storage of a peer.
    pub library: LibrarySection,
    /// Downloads of a peer.
    pub download: DownloadSection,
    /// Bandwidth limits of a peer.
    pub limits: LimitsSection,
    /// HTTP listener.
    pub http: HttpSection,
    /// Log output on stderr.
    pub log: LogSection,
    /// Storage backend and its settings.
    pub storage: StorageSection,
}

impl Config {
    /// Returns the defaults of a tracker or a peer.
    pub fn defaults(kind: NodeKind) -> Self {
        let listen = match kind {
            NodeKind::Tracker => vec![loopback("zmq", 7700)],
            NodeKind::Peer => vec![loopback("tcp", 7711), loopback("zmq", 7710)],
        };
        Self { transport: TransportSection { listen, ..TransportSection::default() }, ..Self::default() }
    }
}

fn loopback(scheme: &str, port: u16) -> Endpoint {
    format!("{scheme}://127.0.0.1:{port}").parse().expect("an address and a port make an endpoint")
}

/// `[tracker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrackerSection {
    /// Data directory with database, key and control socket, relative to the configuration file.
    pub data_dir: PathBuf,
    /// Whether the group of the data directory can run commands in the running tracker.
    pub group_access: bool,
    /// Time for which a peer counts as alive after its last renewal.
    pub lease: Span,
    /// Time after which a file without providers is removed from the catalogue.
    pub retention: Span,
    /// Number of new sessions from one address at once. They are available again after about two minutes.
    pub sessions_per_address: NonZeroU32,
    /// Memory for cached lookup results.
    pub lookup_cache: Size,
    /// Hosts that peers may announce in addition to the address that the tracker sees; `*`: all.
    pub announced_hosts: Vec<String>,
    /// Replicas that the tracker stores.
    pub store: StoreSection,
}

impl Default for TrackerSection {
    fn default() -> Self {
        Self {
            data_dir: "data/tracker".into(),
            group_access: false,
            lease: Span::seconds(30),
            retention: Span::days(30),
            sessions_per_address: DEFAULT_SESSIONS_PER_ADDRESS,
            lookup_cache: Size::bytes(32 << 20),
            announced_hosts: Vec::new(),
            store: StoreSection::default(),
        }
    }
}

/// `[tracker.store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Whether the tracker stores replicas for `publish --pin`.
    pub enabled: bool,
    /// Maximum size of all replicas together.
    pub quota: Size,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { enabled: false, quota: Size::bytes(10 << 30) }
    }
}

/// `[peer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSection {
    /// Data directory with database, key and control socket, relative to the configuration file.
    pub data_dir: PathBuf,
    /// Whether the group of the data directory can run commands in the running peer.
    pub group_access: bool,
    /// The trackers of the peer.
    pub trackers: Vec<Endpoint>,
}

impl Default for PeerSection {
    fn default() -> Self {
        Self { data_dir: "data/peer".into(), group_access: false, trackers: vec![loopback("zmq", 7700)] }
    }
}

/// The peers that a tracker admits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdmissionMode {
    /// All peers.
    #[default]
    Open,
    /// Peers that joined with an invitation.
    Invite,
}

/// `[swarm]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwarmSection {
    /// For trackers: `"open"` or `"invite"`.
    pub admission: AdmissionMode,
    /// For peers: the public key of the authority of an invite-only swarm. Empty if the swarm is open.
    pub authority: AuthorityKey,
}

/// `[transport]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportSection {
    /// Endpoints to listen on. The scheme selects the transport. With port 0 the system chooses the port.
    pub listen: Vec<Endpoint>,
    /// Endpoints that are announced to other peers. If empty, the address that the tracker sees, with the ports of `listen`.
    pub advertise: Vec<Endpoint>,
    /// Whether a plaintext transport may listen on other addresses than loopback.
    pub allow_plaintext: bool,
    /// Limits per remote. A connection that exceeds them is closed.
    pub limits: TransportLimits,
}

/// `[transport.limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportLimits {
    /// Maximum size of a message header.
    pub header: Size,
    /// Maximum size of a message payload, at least the maximum size of a piece, 4 MiB.
    pub payload: Size,
    /// Maximum number of unanswered requests per connection.
    pub in_flight: usize,
    /// Maximum size of queued replies per connection.
    pub queued_per_connection: Size,
    /// Maximum size of queued replies over all connections.
    pub queued_total: Size,
    /// Maximum number of connections.
    pub connections: usize,
    /// Maximum number of connections per remote address.
    pub connections_per_address: usize,
    /// Maximum duration of a handshake.
    pub handshake_timeout: Span,
    /// Time after which an idle connection is closed.
    pub idle_timeout: Span,
    /// Maximum time to read 256 KiB of queued replies, and to send a complete request.
    pub stall_timeout: Span,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            header: Size::bytes(64 << 10),
            payload: Size::bytes(4 << 20),
            in_flight: 64,
            queued_per_connection: Size::bytes(8 << 20),
            queued_total: Size::bytes(32 << 20),
            connections: 1024,
            connections_per_address: 64,
            handshake_timeout: Span::seconds(10),
            idle_timeout: Span::seconds(300),
            stall_timeout: Span::seconds(30),
        }
    }
}

/// The storage of file content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentKind {
    /// In the database.
    #[default]
    Database,
    /// In plain files below the data directory, with the index in the database.
    Files,
}

/// `[library]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LibrarySection {
    /// `"database"` or `"files"`.
    pub content: ContentKind,
}

/// `[download]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DownloadSection {
    /// Time to wait for a provider of the missing pieces.
    pub provider_timeout: Span,
}

impl Default for DownloadSection {
    fn default() -> Self {
        Self { provider_timeout: Span::seconds(60) }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Piece bytes sent per second, over all peers.
    pub upload: Rate,
    /// Piece bytes received per second, over all peers.
    pub download: Rate,
}

/// `[http]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSection {
    /// Addresses to listen on, such as `127.0.0.1:7780`. With port 0 the system chooses the port.
    pub listen: Vec<ListenAddress>,
    /// File with the token that clients beyond loopback send. If empty, `http-token` in the data directory, which is created.
    pub token_file: PathBuf,
    /// Host names of this node that clients may use, in addition to IP addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Whether other addresses than loopback may be used without TLS.
    pub allow_plaintext: bool,
    /// Certificate and key.
    pub tls: HttpTlsSection,
}

/// `[http.tls]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpTlsSection {
    /// PEM file with the certificate chain. If empty, HTTP is not encrypted.
    pub cert: PathBuf,
    /// PEM file with the key.
    pub key: PathBuf,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `"info,enjambre_swarm=debug"`. In a file it applies to
    /// the daemons only; other commands log at `warn`.
    pub level: String,
    /// `"text"`, or `"json"` for one object per line.
    pub format: LogFormat,
    /// URL of a collector for spans, such as `"http://127.0.0.1:4318"`. If empty, spans are not exported. Requires the
    /// feature `otlp`.
    pub otlp_endpoint: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::default(), otlp_endpoint: String::new() }
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageSection {
    /// The name of a registered storage backend.
    pub backend: String,
    /// Wrappers around the storage, independent of the backend.
    pub layers: LayersSection,
    /// One table per backend, `[storage.NAME]`.
    #[serde(flatten)]
    pub tables: BTreeMap<String, toml::Table>,
}

impl Default for StorageSection {
    fn default() -> Self {
        Self { backend: "sqlite".into(), layers: LayersSection::default(), tables: BTreeMap::new() }
    }
}

impl StorageSection {
    /// Returns the table of a backend, or an empty table.
    pub fn table(&self, backend: &str) -> toml::Table {
        self.tables.get(backend).cloned().unwrap_or_default()
    }
}

/// `[storage.layers]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayersSection {
    /// Maximum duration of a call, including its retries.
    pub timeout: Timeout,
    /// Maximum number of retries of a failed call that is safe to repeat.
    pub retries: u32,
}
