//! Commands for a running peer or tracker.

use std::path::PathBuf;

use enjambre_core::{Endpoint, Name};
use serde::{Deserialize, Serialize};

use crate::node::Limits;

/// A command for a peer or a tracker. Paths are absolute. A `query` is a name, an id, or a prefix of an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Adds files and directories to the library and the catalogue.
    Publish {
        /// The files and directories.
        paths: Vec<PathBuf>,
        /// The name to publish under, instead of the file name. Requires a single path.
        name: Option<Name>,
        /// Whether to copy the content into the library instead of linking the files.
        store: bool,
        /// Whether to wait until a tracker stores a replica.
        pin: bool,
        /// Whether an entry of a directory that cannot be published is an error.
        strict: bool,
        /// Patterns of entries of directories to leave out.
        exclude: Vec<String>,
    },
    /// Adds the [`Input`](crate::Input) to the library and the catalogue.
    PublishInput {
        /// The name to publish under.
        name: Name,
        /// The size of the content, or an upper bound of it, if it is known.
        size: Option<u64>,
        /// Whether to wait until a tracker stores a replica.
        pin: bool,
    },
    /// Downloads files and directories. A query may also be a directory, `/` and the path of a file or directory in it.
    Get {
        /// The files and directories.
        queries: Vec<String>,
        /// Where the downloads go.
        output: Output,
        /// Whether to replace existing files.
        force: bool,
        /// Whether to sync the content to disk before the command completes.
        sync: bool,
    },
    /// Lists the files of a directory, without downloading them.
    Contents {
        /// The directory.
        query: String,
    },
    /// Lists the downloads. For peers.
    Downloads,
    /// Reports the sources and pieces of a download. For peers.
    Download {
        /// The download.
        query: String,
    },
    /// Adds a file or directory to the download queue. For peers.
    StartDownload {
        /// The file or directory in the catalogue.
        query: String,
    },
    /// Pauses a download of the queue. For peers.
    PauseDownload {
        /// The download.
        query: String,
    },
    /// Resumes a paused download, or tries a failed one again. For peers.
    ResumeDownload {
        /// The download.
        query: String,
    },
    /// Removes a download from the queue. For peers.
    CancelDownload {
        /// The download.
        query: String,
        /// Whether to keep the incomplete file in the library.
        keep: bool,
    },
    /// Moves a download in the queue. For peers.
    MoveDownload {
        /// The download.
        query: String,
        /// The new position among the downloads of the queue that are not finished, from 0.
        position: u64,
    },
    /// Lists the library.
    Library,
    /// Exports a file or directory of the library to a path.
    Export {
        /// The file or directory.
        query: String,
        /// The path to write to, or with a final slash the directory to write into. A file is written into an existing
        /// directory, too.
        output: PathBuf,
        /// Whether to replace an existing file.
        force: bool,
    },
    /// Removes a file or directory from the library.
    Remove {
        /// The file or directory. A name that is not the only one of its content is removed alone.
        query: String,
    },
    /// Verifies the hashes of a file, of a directory with its files, or of the whole library. Fails if a piece is damaged;
    /// with a query also if one is missing.
    Verify {
        /// The file or directory. `None` selects the whole library.
        query: Option<String>,
    },
    /// Reports the status of the node.
    Status,
    /// Reports the log level of the node, or changes it until the node is restarted.
    Log {
        /// The new level, as in the setting `log.level`.
        level: Option<String>,
    },
    /// Sends events of changes until it is cancelled.
    Watch,
    /// Reports the effective settings.
    Settings,
    /// Reports the last lines of the log.
    LogTail {
        /// Maximum number of lines.
        limit: usize,
    },
    /// Reports the bandwidth limits. For peers.
    Limits,
    /// Sets the bandwidth limits until the node exits. For peers.
    SetLimits(Limits),
    /// Searches the catalogue.
    Search {
        /// Text that the names contain, a pattern for the whole name if it has `*` or `?`, or `/` and the name.
        pattern: String,
        /// The `next` of the previous page.
        cursor: Option<String>,
        /// Maximum number of files.
        limit: usize,
    },
    /// Looks up a file in the catalogue.
    File {
        /// The file or directory.
        query: String,
    },
    /// Lists the peers that are online. For trackers.
    OnlinePeers {
        /// The `next` of the previous page.
        cursor: Option<String>,
        /// Maximum number of peers.
        limit: usize,
    },
    /// Lists the pins of a peer, or those of all peers at a tracker.
    Pins,
    /// Requests that a tracker stores a replica, or reports its progress. For peers.
    Pin {
        /// The file or directory.
        query: String,
    },
    /// Removes a pin of a peer, or all pins of a file at a tracker.
    Unpin {
        /// The pinned file.
        query: String,
    },
    /// Creates an invitation. For trackers.
    Invite {
        /// Maximum number of peers that can join.
        uses: u32,
        /// Validity period in milliseconds.
        lifetime_ms: u64,
        /// Whether the peers have download rights only.
        read_only: bool,
        /// Other trackers of the swarm to include in the invitation.
        trackers: Vec<Endpoint>,
    },
    /// Lists the valid invitations. For trackers.
    Invitations,
    /// Cancels an invitation. For trackers.
    CancelInvitation {
        /// The id of the invitation, or a prefix of it.
        id: String,
    },
    /// Lists the members. For trackers.
    Peers,
    /// Revokes the membership of a peer. For trackers.
    Revoke {
        /// The id of the peer, or a prefix of it.
        peer: String,
    },
    /// Reserves a name for one peer, or releases it. For trackers.
    Reserve {
        /// The name.
        name: Name,
        /// The id of the peer, or a prefix of it. `None` releases the name.
        peer: Option<String>,
    },
}

/// Where downloads go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The library.
    Library,
    /// The file or directory at this path. With `into` the path is a directory that is created if it does not exist, and
    /// each download is written into it under its name. Without it, a file is written into an existing directory, too.
    Path {
        /// The file or directory.
        path: PathBuf,
        /// Whether `path` is a directory for the downloads.
        into: bool,
    },
    /// The library, and then the client, as [`Event::Content`](crate::Event::Content).
    Client,
}
