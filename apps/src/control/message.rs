//! Commands for a running peer or tracker, and their events.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use enjambre_core::model::membership::Rights;
use enjambre_core::model::name::Name;
use enjambre_core::model::record::FileKind;
use enjambre_core::{Endpoint, FileId, PeerId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// The version of the control protocol. Client and server must have the same version.
pub const CONTROL_VERSION: u32 = 1;
/// Maximum length of a line, in bytes.
pub const MAX_LINE: usize = 4 << 20;

/// The request of a client.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    /// The command.
    pub command: Command,
}

/// A command for a peer or a tracker. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Command {
    /// Adds files and directories to the library and the catalogue.
    Publish {
        /// Files and directories.
        paths: Vec<PathBuf>,
        /// The name to publish under, instead of the file name. Requires a single path.
        name: Option<Name>,
        /// Whether to copy the content into the library instead of linking the files.
        store: bool,
        /// Whether to wait until a tracker stores a replica.
        pin: bool,
    },
    /// Downloads a file or directory.
    Get {
        /// A name, an id, or a prefix of an id.
        query: String,
        /// The path to write to. `None` stores the download in the library.
        output: Option<PathBuf>,
        /// Whether to overwrite existing files.
        force: bool,
        /// Whether to sync the content to disk before the command completes.
        sync: bool,
    },
    /// Lists the library.
    Library,
    /// Exports a file or directory of the library to a path.
    Export {
        /// A name, an id, or a prefix of an id.
        query: String,
        /// The path to write to.
        output: PathBuf,
        /// Whether to overwrite existing files.
        force: bool,
    },
    /// Removes a file or directory from the library.
    Remove {
        /// A name, an id, or a prefix of an id.
        query: String,
    },
    /// Verifies the hashes of one file or of all files.
    Verify {
        /// A name, an id, or a prefix of an id. `None` selects all files.
        query: Option<String>,
    },
    /// Returns the status of the peer.
    Status,
    /// Creates an invitation. For trackers.
    Invite {
        /// Maximum number of peers that can join.
        uses: u32,
        /// The validity period, in milliseconds.
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
        /// The id, or a prefix of it.
        id: String,
    },
    /// Lists the members. For trackers.
    Peers,
    /// Revokes the membership of a peer. For trackers.
    Revoke {
        /// The id, or a prefix of it.
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

/// An event of a running command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Progress of hashing or copying a file.
    Hashing {
        /// The file.
        path: PathBuf,
        /// Completed bytes.
        done: u64,
        /// Bytes in total.
        total: u64,
    },
    /// A file or directory was published.
    Published {
        /// The name.
        name: Name,
        /// The id.
        id: FileId,
        /// The size in bytes. For a directory, the total size of its files.
        size: u64,
        /// The kind.
        kind: FileKind,
        /// The version of the name.
        version: u64,
        /// Whether this is a new version.
        new: bool,
    },
    /// Progress of a replica.
    Pinning {
        /// The file.
        name: Name,
        /// Bytes that the tracker has stored.
        done: u64,
        /// Bytes in total.
        total: u64,
    },
    /// A replica is complete.
    Pinned {
        /// The file.
        name: Name,
    },
    /// Progress of a download.
    Progress {
        /// Completed bytes.
        done: u64,
        /// Bytes in total.
        total: u64,
        /// Number of providers in use.
        providers: u32,
    },
    /// A download is complete.
    Complete {
        /// The name.
        name: Name,
        /// The id.
        id: FileId,
        /// The path of the download. `None` if it is stored in the library.
        path: Option<PathBuf>,
        /// The size in bytes.
        bytes: u64,
        /// The duration in seconds.
        seconds: f64,
    },
    /// A file of the library.
    File(LibraryLine),
    /// A file or directory was exported.
    Exported {
        /// The id.
        id: FileId,
        /// The path.
        path: PathBuf,
        /// The size in bytes.
        bytes: u64,
    },
    /// A file was removed from the library.
    Removed {
        /// The name. `None` for a member of a directory.
        name: Option<Name>,
        /// The id.
        id: FileId,
    },
    /// A file was verified.
    Verified {
        /// The name. `None` for a member of a directory.
        name: Option<Name>,
        /// The id.
        id: FileId,
        /// Number of valid pieces.
        good: u64,
        /// Number of damaged pieces.
        bad: u64,
        /// Number of missing pieces.
        missing: u64,
    },
    /// The status of the peer.
    Status(NodeStatus),
    /// An invitation was created.
    Invitation {
        /// The invitation, which contains its secret.
        invitation: String,
        /// The id.
        id: String,
        /// Maximum number of peers that can join.
        uses: u32,
        /// The expiry time in milliseconds since 1970-01-01 UTC.
        expires_ms: u64,
    },
    /// A valid invitation.
    OpenInvitation(InvitationLine),
    /// An invitation was cancelled.
    Cancelled {
        /// The id.
        id: String,
    },
    /// A current or revoked member.
    Member(MemberLine),
    /// A membership was revoked.
    Revoked {
        /// The id.
        peer: PeerId,
        /// Whether the peer was not revoked before.
        new: bool,
        /// The invitations of the peer that were cancelled with the revocation, in their previous state.
        cancelled: Vec<InvitationLine>,
    },
    /// A name was reserved or released.
    Reserved {
        /// The name.
        name: Name,
        /// The peer that can publish the name. `None` if the name was released.
        peer: Option<PeerId>,
    },
    /// A problem that does not stop the command.
    Warning {
        /// The message, in one line.
        message: String,
    },
    /// Final event: the command succeeded.
    Done,
    /// Final event: the command failed.
    Failed(Failure),
}

/// A file in the library.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LibraryLine {
    /// The name.
    pub name: Name,
    /// The id.
    pub id: FileId,
    /// The size in bytes.
    pub size: u64,
    /// Number of pieces.
    pub pieces: u32,
    /// Number of pieces in the library.
    pub available_pieces: u32,
    /// `database`, `files` or `linked`.
    pub content: String,
    /// The path of a linked file.
    pub path: Option<PathBuf>,
    /// The kind.
    pub kind: FileKind,
    /// Whether the linked file was modified or deleted.
    pub withdrawn: bool,
}

/// An invitation to a swarm. Times are in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InvitationLine {
    /// The id, in hexadecimal digits.
    pub id: String,
    /// The rights of peers that join with the invitation.
    pub rights: Rights,
    /// Number of peers that can still join.
    pub uses: u32,
    /// The expiry time.
    pub expires_ms: u64,
    /// The creation time.
    pub created_ms: u64,
}

/// A member of an invite-only swarm. Times are in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberLine {
    /// The id.
    pub peer: PeerId,
    /// The rights.
    pub rights: Rights,
    /// The time of the join.
    pub joined_ms: u64,
    /// The time of the last recorded activity. `None` if it is too long ago.
    pub last_seen_ms: Option<u64>,
    /// Whether the peer is online.
    pub online: bool,
    /// The time of the revocation.
    pub revoked_ms: Option<u64>,
    /// The ids of the invitations with which the peer joined.
    pub invitations: Vec<String>,
}

/// The status of a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The id.
    pub peer: PeerId,
    /// The process id.
    pub pid: u32,
    /// The version of the program.
    pub version: String,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// Whether the process is a daemon (`enjambre peer`) and not a short command.
    pub daemon: bool,
    /// The listen endpoints.
    pub listen: Vec<Endpoint>,
    /// Number of files in the library.
    pub files: u64,
    /// Number of files that this peer published.
    pub published: u64,
    /// Size of the content in the library, in bytes.
    pub content_bytes: u64,
    /// Size of the pieces sent since the start, in bytes.
    pub sent_bytes: u64,
    /// The status of the trackers.
    pub trackers: Vec<TrackerLine>,
}

/// The status of a tracker, as seen by a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrackerLine {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether the peer has a session with the tracker.
    pub connected: bool,
    /// The problem, if any.
    pub problem: Option<String>,
}

/// The sink for the events of a running command.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    /// Creates a bounded channel for events.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self(sender), receiver)
    }

    /// Sends an event. Waits while the channel is full.
    pub async fn send(&self, event: Event) {
        // If the receiver is gone, the command is about to be cancelled.
        let _ = self.0.send(event).await;
    }

    /// Sends an event that a later one supersedes. Drops it if the channel is full.
    pub fn progress(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    /// Sends a warning.
    pub async fn warn(&self, message: impl Into<String>) {
        self.send(Event::Warning { message: message.into() }).await;
    }
}

/// Executes commands. Dropping the future cancels the command.
#[async_trait]
pub trait Execute: Send + Sync + 'static {
    /// Executes a command. The caller sends `Done` or `Failed`.
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure>;
}

#[async_trait]
impl<T: Execute> Execute for Arc<T> {
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure> {
        (**self).execute(command, events).await
    }
}

/// Runs a command in this process and passes its events to `show`.
pub async fn run_locally(
    handler: &dyn Execute,
    command: Command,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    let (events, mut receiver) = Events::channel();
    let mut running = handler.execute(command, events);
    let result = loop {
        tokio::select! {
            biased;
            Some(event) = receiver.recv() => show(event),
            result = &mut running => break result,
        }
    };
    drop(running);
    while let Some(event) = receiver.recv().await {
        show(event);
    }
    result
}
