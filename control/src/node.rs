//! The state of a running node.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use enjambre_core::{Endpoint, Name, PeerId, UnixMillis};
use enjambre_swarm::library::entry::WithdrawReason;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::schema;

/// The status of a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// The id of the peer.
    #[schema(value_type = String)]
    pub peer: PeerId,
    /// The id of the process.
    pub pid: u32,
    /// The version of the program.
    pub version: String,
    /// Time since the start.
    pub uptime_seconds: f64,
    /// Whether the process is a daemon (`enjambre peer`) and not a short command.
    pub daemon: bool,
    /// The endpoints at which other peers reach this one.
    #[schema(value_type = Vec<String>)]
    pub listen: Vec<Endpoint>,
    /// Number of files and directories in the library.
    pub files: u64,
    /// Number of files and directories that this peer published, without those of which trackers refused all names.
    pub published: u64,
    /// Number of names that all trackers refused, for example because they are reserved for another peer. The peer publishes
    /// them again at intervals.
    pub refused_names: u64,
    /// Number of files that are not offered because the linked file is missing or changed.
    pub withdrawn: u64,
    /// The first of these files.
    pub withdrawn_files: Vec<WithdrawnLine>,
    /// Size of the content in the library, in bytes.
    pub content_bytes: u64,
    /// Size of the pieces sent since the start, in bytes.
    pub sent_bytes: u64,
    /// The trackers of the peer.
    pub trackers: Vec<TrackerLine>,
}

/// A linked file that a peer does not offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WithdrawnLine {
    /// `null` for a member of a directory.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// The path of the linked file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Why the file is not offered.
    #[schema(schema_with = schema::withdraw_reason)]
    pub reason: WithdrawReason,
}

/// The status of a tracker, as seen by a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrackerLine {
    /// The endpoint of the tracker.
    #[schema(value_type = String)]
    pub endpoint: Endpoint,
    /// Whether the peer has a session with the tracker.
    pub connected: bool,
    /// The last problem with the tracker.
    pub problem: Option<String>,
}

/// The status of a tracker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrackerNodeStatus {
    /// The id of the tracker.
    #[schema(value_type = String)]
    pub peer: PeerId,
    /// The id of the process.
    pub pid: u32,
    /// The version of the program.
    pub version: String,
    /// Time since the start.
    pub uptime_seconds: f64,
    /// The endpoints at which the tracker listens.
    #[schema(value_type = Vec<String>)]
    pub listen: Vec<Endpoint>,
    /// The storage backend.
    pub backend: String,
    /// Versions of names in the catalogue.
    pub files: u64,
    /// Number of peers that are online.
    pub peers: u64,
    /// Who may join the swarm: `open` or `invite`.
    pub admission: String,
    /// The replica store. `null` if the tracker has none.
    pub pins: Option<StoreUsage>,
    /// The latencies of the database since the start.
    pub storage: Vec<StorageLatency>,
}

/// The usage of the replica store of a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreUsage {
    /// Number of pins.
    pub count: u64,
    /// Bytes reserved for them.
    pub bytes: u64,
    /// Maximum number of bytes.
    pub quota: u64,
}

/// The latencies of an operation of the database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StorageLatency {
    /// The operation, for example `get`.
    pub operation: String,
    /// Number of calls.
    pub count: u64,
    /// Median, as an upper bound.
    pub p50_ms: f64,
    /// 99th percentile, as an upper bound.
    pub p99_ms: f64,
}

/// The effective settings of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settings {
    /// The values by key, in the types of the configuration file. Passwords are left out.
    pub settings: BTreeMap<String, Value>,
}

/// The bandwidth limits of a peer, in bytes per second. `null` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The limit of what is sent to other peers.
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub upload_rate: Option<NonZeroU64>,
    /// The limit of what is received from other peers.
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub download_rate: Option<NonZeroU64>,
}

/// The last lines of the log of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogTail {
    /// The lines, newest last.
    pub lines: Vec<LogLine>,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// The time, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub time_ms: UnixMillis,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The module of the program.
    pub target: String,
    /// The message with its fields.
    pub message: String,
}
