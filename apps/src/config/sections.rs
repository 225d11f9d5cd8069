//! The sections of a configuration, with their defaults.
//!
//! A section is handed to the part that it is for, never the whole. Every field is always written, so the
//! defaults are also the list of the known keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use enjambre_core::model::endpoint::Endpoint;
use serde::{Deserialize, Serialize};

use super::value::{AuthorityKey, Deadline, Rate, SharedPrefix, Size, Span};

/// What is started: it decides over a few defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Keeps the catalogue.
    Tracker,
    /// Publishes, downloads and offers files.
    Peer,
}

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For `enjambre tracker`.
    pub tracker: TrackerSection,
    /// For `enjambre peer` and all commands that work on files.
    pub peer: PeerSection,
    /// Who may come in.
    pub swarm: SwarmSection,
    /// Where to listen, and what a remote may do.
    pub transport: TransportSection,
    /// How the peer keeps what it has.
    pub library: LibrarySection,
    /// How the peer downloads.
    pub download: DownloadSection,
    /// How fast the peer may be.
    pub limits: LimitsSection,
    /// What is logged on stderr.
    pub log: LogSection,
    /// Which database, and how it is set up.
    pub storage: StorageSection,
}

impl Config {
    /// The defaults for a tracker or a peer.
    pub fn defaults(kind: NodeKind) -> Self {
        let listen = match kind {
            NodeKind::Tracker => vec![loopback("zmq", 7700)],
            NodeKind::Peer => vec![loopback("tcp", 7711), loopback("zmq", 7710)],
        };
        Self {
            tracker: TrackerSection::default(),
            peer: PeerSection::default(),
            swarm: SwarmSection::default(),
            transport: TransportSection { listen, ..TransportSection::default() },
            library: LibrarySection::default(),
            download: DownloadSection::default(),
            limits: LimitsSection::default(),
            log: LogSection::default(),
            storage: StorageSection::default(),
        }
    }
}

fn loopback(scheme: &str, port: u16) -> Endpoint {
    format!("{scheme}://127.0.0.1:{port}").parse().expect("an address and a port make an endpoint")
}

/// `[tracker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrackerSection {
    /// Where the tracker keeps its database and its key; relative to the configuration file.
    pub data_dir: PathBuf,
    /// How long a peer counts as alive after its last sign of life.
    pub lease: Span,
    /// How long a file stays in the catalogue when nobody offers it.
    pub forget: Span,
    /// How much memory it may use to answer look-ups without the database.
    pub cache: Size,
    /// Copies that the tracker keeps itself.
    pub store: StoreSection,
}

impl Default for TrackerSection {
    fn default() -> Self {
        Self {
            data_dir: "data/tracker".into(),
            lease: Span::seconds(30),
            forget: Span::days(30),
            cache: Size::bytes(32 << 20),
            store: StoreSection::default(),
        }
    }
}

/// `[tracker.store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Whether `publish --pin` may ask this tracker to keep a copy.
    pub enabled: bool,
    /// How many bytes of copies it keeps at most.
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
    /// Where the peer keeps its database and its key; relative to the configuration file.
    pub data_dir: PathBuf,
    /// The trackers to publish to and to ask.
    pub trackers: Vec<Endpoint>,
}

impl Default for PeerSection {
    fn default() -> Self {
        Self { data_dir: "data/peer".into(), trackers: vec![loopback("zmq", 7700)] }
    }
}

/// Whom a tracker lets in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admits {
    /// Everybody who reaches it.
    #[default]
    Open,
    /// Those who were invited.
    Invited,
}

/// `[swarm]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwarmSection {
    /// For a tracker: `"open"` or `"invited"`.
    pub admission: Admits,
    /// For a peer: the public key of the authority of a swarm by invitation; empty where the swarm is open.
    pub authority: AuthorityKey,
}

/// `[transport]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportSection {
    /// Where to listen; the scheme names the transport, port 0 lets the system choose.
    pub listen: Vec<Endpoint>,
    /// Where others reach this peer; empty: at the address that the tracker sees, and the port of `listen`.
    pub advertise: Vec<Endpoint>,
    /// Whether an endpoint without encryption and authentication may be on anything but loopback.
    pub open: bool,
    /// What a remote may do before it is cut off.
    pub limits: TransportLimits,
}

/// `[transport.limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportLimits {
    /// The largest header of a message.
    pub header: Size,
    /// The largest payload of a message; never below the largest piece, 4MiB.
    pub payload: Size,
    /// Requests in flight per connection.
    pub in_flight: usize,
    /// Reply bytes queued per connection.
    pub queued_per_connection: Size,
    /// Reply bytes queued in all.
    pub queued_in_all: Size,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
    /// How long a handshake may take.
    pub handshake: Span,
    /// How long a connection may be silent.
    pub idle: Span,
    /// How long a connection may take for 256 KiB of what waits for it, and for sending a whole request.
    pub stalled: Span,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            header: Size::bytes(64 << 10),
            payload: Size::bytes(4 << 20),
            in_flight: 64,
            queued_per_connection: Size::bytes(8 << 20),
            queued_in_all: Size::bytes(32 << 20),
            connections: 1024,
            connections_per_address: 64,
            handshake: Span::seconds(10),
            idle: Span::seconds(300),
            stalled: Span::seconds(30),
        }
    }
}

/// Where the content of files is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentKind {
    /// In the database.
    Database,
    /// In plain files below the data folder, with the index in the database.
    Files,
}

/// `[library]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LibrarySection {
    /// `"database"` or `"files"`.
    pub content: ContentKind,
}

impl Default for LibrarySection {
    fn default() -> Self {
        Self { content: ContentKind::Database }
    }
}

/// `[download]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DownloadSection {
    /// How long to wait for somebody who has the missing pieces.
    pub patience: Span,
}

impl Default for DownloadSection {
    fn default() -> Self {
        Self { patience: Span::seconds(60) }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Piece bytes sent per second, to all peers together.
    pub upload: Rate,
    /// Piece bytes received per second, from all peers together.
    pub download: Rate,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `"info,enjambre_core=debug"`.
    pub level: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { level: "info".into() }
    }
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageSection {
    /// The name of a registered storage backend.
    pub backend: String,
    /// What is wrapped around the storages of whatever backend.
    pub layers: LayersSection,
    /// One table per backend, `[storage.NAME]`; each backend reads its own.
    #[serde(flatten)]
    pub tables: BTreeMap<String, toml::Table>,
}

impl Default for StorageSection {
    fn default() -> Self {
        Self { backend: "sqlite".into(), layers: LayersSection::default(), tables: BTreeMap::new() }
    }
}

impl StorageSection {
    /// The table of a backend; empty where there is none.
    pub fn table(&self, backend: &str) -> toml::Table {
        self.tables.get(backend).cloned().unwrap_or_default()
    }
}

/// `[storage.layers]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayersSection {
    /// Whether calls are counted and the log is told of them.
    pub metrics: bool,
    /// How long a call of the storage may take, with its repeats.
    pub timeout: Deadline,
    /// How often a call is repeated that the storage could not take and that is safe to repeat.
    pub retries: u32,
    /// What stands before the names of the spaces, so that several trackers can share one database.
    pub prefix: SharedPrefix,
}
