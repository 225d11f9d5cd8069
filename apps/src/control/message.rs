//! Commands for a running peer or tracker, their events, and the content that clients send.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_core::model::membership::Rights;
use enjambre_core::protocol::message::PinStatus;
use enjambre_core::{Endpoint, FileId, FileKind, Name, PeerId, UnixMillis};
use enjambre_swarm::library::entry::WithdrawReason;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// The version of the control protocol. Client and server must have the same version.
pub(crate) const CONTROL_VERSION: u32 = 1;
/// Maximum length of a line, in bytes.
pub(crate) const MAX_LINE: usize = 4 << 20;
/// Maximum length of the content in one line, in bytes.
pub(crate) const CONTENT_BYTES: usize = 64 * 1024;
/// Maximum time between two events of a running command.
pub(crate) const ALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// The first line of a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) version: u32,
    pub(crate) command: Command,
    /// The settings that the node must have, by key, as TOML values.
    #[serde(default)]
    pub(crate) settings: BTreeMap<String, String>,
}

/// A command for a peer or a tracker. Paths are absolute. A `query` is a name, an id, or a prefix of an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Adds files and directories to the library and the catalogue.
    Publish {
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
    /// Adds the [`Input`] to the library and the catalogue.
    PublishInput {
        name: Name,
        /// Whether to wait until a tracker stores a replica.
        pin: bool,
    },
    /// Downloads files and directories. A query may also be a directory, `/` and the path of a file or directory in it.
    Get {
        queries: Vec<String>,
        output: Output,
        force: bool,
        /// Whether to sync the content to disk before the command completes.
        sync: bool,
    },
    /// Lists the files of a directory, without downloading them.
    Contents {
        query: String,
    },
    Library,
    /// Exports a file or directory of the library to a path.
    Export {
        query: String,
        output: PathBuf,
        force: bool,
    },
    Remove {
        query: String,
    },
    /// Verifies the hashes of one file or of all files.
    Verify {
        /// `None` selects all files.
        query: Option<String>,
    },
    Status,
    /// Lists the pins of a peer, or those of all peers at a tracker.
    Pins,
    /// Removes a pin of a peer, or any pin at a tracker.
    Unpin {
        query: String,
    },
    /// Creates an invitation. For trackers.
    Invite {
        /// Maximum number of peers that can join.
        uses: u32,
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
        id: String,
    },
    /// Lists the members. For trackers.
    Peers,
    /// Revokes the membership of a peer. For trackers.
    Revoke {
        peer: String,
    },
    /// Reserves a name for one peer, or releases it. For trackers.
    Reserve {
        name: Name,
        /// The id of the peer, or a prefix of it. `None` releases the name.
        peer: Option<String>,
    },
}

/// Where downloads go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Output {
    Library,
    /// The file or directory at this path. With `into` the path is a directory that is created if it does not exist, and
    /// each download gets a name in it if there are several.
    Path {
        path: PathBuf,
        into: bool,
    },
    /// The library, and then the client, as [`Event::Content`].
    Client,
}

/// An event of a running command. `done`, `total`, `size` and `bytes` are numbers of bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Progress of hashing or copying a file.
    Hashing {
        path: PathBuf,
        done: u64,
        total: u64,
    },
    Published {
        name: Name,
        id: FileId,
        /// For a directory, the total size of its files.
        size: u64,
        kind: FileKind,
        version: u64,
        /// Whether this is a new version.
        new: bool,
    },
    Pinning {
        name: Name,
        done: u64,
        total: u64,
    },
    Pinned {
        name: Name,
    },
    Progress {
        done: u64,
        total: u64,
        providers: u32,
    },
    /// The contents of a directory, before any of it is written.
    Directory {
        name: Name,
        files: u64,
        bytes: u64,
        /// Number of files whose path has a component that begins with a dot.
        hidden: u64,
        /// The first of these paths.
        first_hidden: Vec<String>,
    },
    /// A file of a directory.
    DirectoryEntry {
        path: String,
        size: u64,
        executable: bool,
    },
    /// The next bytes of a file, in Base64.
    Content {
        data: String,
    },
    Complete {
        name: Name,
        id: FileId,
        /// The path of the download. `None` if it is stored in the library.
        path: Option<PathBuf>,
        /// The inode at the path, by which the client checks that it sees the same file.
        inode: Option<u64>,
        bytes: u64,
        /// The part of `bytes` that was not stored before the command.
        received: u64,
        seconds: f64,
    },
    File(LibraryLine),
    Exported {
        id: FileId,
        path: PathBuf,
        bytes: u64,
    },
    Removed {
        /// `None` for a member of a directory.
        name: Option<Name>,
        id: FileId,
        /// Another name of the file, which therefore stays in the library.
        left: Option<Name>,
    },
    /// A file was verified, with its number of valid, damaged and missing pieces.
    Verified {
        /// `NAME/PATH` for a member of a directory. `None` if the name is unknown.
        name: Option<String>,
        id: FileId,
        good: u64,
        bad: u64,
        missing: u64,
    },
    Status(NodeStatus),
    Pin(PinStatus),
    Unpinned {
        id: FileId,
    },
    Invitation {
        invitation: String,
        id: String,
        uses: u32,
        expires_ms: UnixMillis,
    },
    OpenInvitation(InvitationLine),
    Cancelled {
        id: String,
    },
    Member(MemberLine),
    Revoked {
        peer: PeerId,
        /// Whether the peer was not revoked before.
        new: bool,
        /// The invitations of the peer that were cancelled with the revocation, in their previous state.
        cancelled: Vec<InvitationLine>,
    },
    Reserved {
        name: Name,
        /// The peer that can publish the name. `None` if the name was released.
        peer: Option<PeerId>,
    },
    /// A problem that does not stop the command.
    Warning {
        message: String,
    },
    /// The command is running, and there is no other event.
    Alive,
    /// Final event: the command succeeded.
    Done,
    /// Final event: the command failed.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LibraryLine {
    pub(crate) name: Name,
    pub(crate) id: FileId,
    pub(crate) size: u64,
    pub(crate) pieces: u32,
    pub(crate) available_pieces: u32,
    /// `database`, `files` or `linked`.
    pub(crate) content: String,
    pub(crate) path: Option<PathBuf>,
    pub(crate) kind: FileKind,
    /// Why the linked file is not offered.
    pub(crate) withdrawn: Option<WithdrawReason>,
}

/// An invitation to a swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InvitationLine {
    pub(crate) id: String,
    /// The rights of peers that join with the invitation.
    pub(crate) rights: Rights,
    /// Number of peers that can still join.
    pub(crate) uses: u32,
    pub(crate) expires_ms: UnixMillis,
    pub(crate) created_ms: UnixMillis,
}

/// A member of an invite-only swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberLine {
    pub(crate) peer: PeerId,
    pub(crate) rights: Rights,
    pub(crate) joined_ms: UnixMillis,
    /// The time of the last recorded activity. `None` if it is too long ago.
    pub(crate) last_seen_ms: Option<UnixMillis>,
    pub(crate) online: bool,
    pub(crate) revoked_ms: Option<UnixMillis>,
    /// The ids of the invitations with which the peer joined.
    pub(crate) invitations: Vec<String>,
}

/// The status of a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) peer: PeerId,
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) uptime_seconds: f64,
    /// Whether the process is a daemon (`enjambre peer`) and not a short command.
    pub(crate) daemon: bool,
    pub(crate) listen: Vec<Endpoint>,
    /// Number of files and directories in the library.
    pub(crate) files: u64,
    /// Number of files and directories that this peer published.
    pub(crate) published: u64,
    /// Number of files that are not offered because the linked file is missing or changed.
    pub(crate) withdrawn: u64,
    /// The first of these files.
    pub(crate) withdrawn_files: Vec<WithdrawnLine>,
    /// Size of the content in the library, in bytes.
    pub(crate) content_bytes: u64,
    /// Size of the pieces sent since the start, in bytes.
    pub(crate) sent_bytes: u64,
    pub(crate) trackers: Vec<TrackerLine>,
}

/// A linked file that a peer does not offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WithdrawnLine {
    /// `None` for a member of a directory.
    pub(crate) name: Option<Name>,
    pub(crate) path: PathBuf,
    pub(crate) reason: WithdrawReason,
}

/// The status of a tracker, as seen by a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrackerLine {
    pub(crate) endpoint: Endpoint,
    /// Whether the peer has a session with the tracker.
    pub(crate) connected: bool,
    pub(crate) problem: Option<String>,
}

/// The content that the client sends with a command. An empty part is the end; without it, the content is incomplete.
///
/// On the socket, each line after the command is a part in Base64.
pub(crate) type Input = mpsc::Receiver<io::Result<Vec<u8>>>;

/// Returns the input of a command without content.
pub(crate) fn no_input() -> Input {
    let (sender, input) = mpsc::channel(1);
    let _ = sender.try_send(Ok(Vec::new()));
    input
}

/// Returns the next part of the content, which is empty at its end.
pub(crate) async fn next_part(input: &mut Input) -> io::Result<Vec<u8>> {
    let incomplete = || Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the content is incomplete"));
    input.recv().await.unwrap_or_else(incomplete)
}

/// The sink for the events of a running command.
#[derive(Debug, Clone)]
pub(crate) struct Events(mpsc::Sender<Event>);

impl Events {
    /// Creates a bounded channel for events.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self(sender), receiver)
    }

    /// Sends an event. Waits while the channel is full.
    pub(crate) async fn send(&self, event: Event) {
        // If the receiver is gone, the command is about to be cancelled.
        let _ = self.0.send(event).await;
    }

    /// Sends an event that a later one supersedes. Drops it if the channel is full.
    pub(crate) fn progress(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    pub(crate) async fn warn(&self, message: impl Into<String>) {
        self.send(Event::Warning { message: message.into() }).await;
    }
}

/// Executes commands. Dropping the future cancels the command.
#[async_trait]
pub(crate) trait Execute: Send + Sync + 'static {
    /// Executes a command. The caller sends `Done` or `Failed`.
    async fn execute(&self, command: Command, input: Input, events: Events) -> Result<(), Failure>;
}

/// Runs a command in this process and passes its events to `show`.
pub(crate) async fn run_locally(
    handler: &dyn Execute,
    command: Command,
    input: Input,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    let (events, mut receiver) = Events::channel();
    let mut running = handler.execute(command, input, events);
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
