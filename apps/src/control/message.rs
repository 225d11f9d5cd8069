//! Commands for a peer or a tracker, and the events that they give.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::{FileId, PeerId};
use enjambre_core::model::name::Name;
use enjambre_core::model::record::FileKind;
use enjambre_core::swarm::membership::Rights;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// The version of the control protocol: a client and a server of other versions do not understand each other.
pub const CONTROL_VERSION: u32 = 1;
/// The longest line in bytes, in both directions.
pub const MAX_LINE: usize = 4 << 20;

/// The one line that a client sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    /// What to do.
    pub command: Command,
}

/// What a peer or a tracker is asked to do. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Put files and folders into the library and the catalogue.
    Publish {
        /// Files and folders.
        paths: Vec<PathBuf>,
        /// Another name than that of the one path.
        name: Option<Name>,
        /// Copy the content in instead of linking the files.
        store: bool,
        /// Let the trackers keep a copy, and wait until one does.
        pin: bool,
    },
    /// Download a file or folder.
    Get {
        /// A name, an id, or a prefix of one.
        query: String,
        /// Where to write it; none: into the library.
        output: Option<PathBuf>,
        /// Write over what is there.
        force: bool,
        /// Return only when it survives a power cut.
        sync: bool,
    },
    /// List the library.
    Library,
    /// Write a file or folder of the library to a path.
    Export {
        /// A name, an id, or a prefix of one.
        query: String,
        /// Where to.
        output: PathBuf,
        /// Write over what is there.
        force: bool,
    },
    /// Take a file or folder out of the library.
    Remove {
        /// A name, an id, or a prefix of one.
        query: String,
    },
    /// Hash a file, or everything, again.
    Verify {
        /// A name, an id, or a prefix of one; none: everything.
        query: Option<String>,
    },
    /// How the peer does.
    Status,
    /// To a tracker: let somebody in.
    Invite {
        /// How many may come in.
        uses: u32,
        /// For how long, in milliseconds.
        millis: u64,
        /// Whether they may download only.
        read_only: bool,
        /// Other trackers on the same database, to be told with it.
        trackers: Vec<Endpoint>,
    },
    /// To a tracker: which invitations still let somebody in.
    Invitations,
    /// To a tracker: let nobody in any more by an invitation.
    CancelInvitation {
        /// Its id, or the first digits.
        id: String,
    },
    /// To a tracker: who is in.
    Peers,
    /// To a tracker: throw a peer out.
    Revoke {
        /// Its id, or the first digits.
        peer: String,
    },
    /// To a tracker: only this peer publishes a name from now on.
    Reserve {
        /// The name.
        name: Name,
        /// Its id, or the first digits; none: everybody.
        peer: Option<String>,
    },
}

/// What happens while a command runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// So much is hashed or copied in.
    Hashing {
        /// What is being read.
        path: PathBuf,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A file or folder is in the catalogue.
    Published {
        /// Its name.
        name: Name,
        /// Its id.
        id: FileId,
        /// Its size in bytes; for a folder that of its files.
        size: u64,
        /// What it is.
        kind: FileKind,
        /// Which version of the name it is.
        version: u64,
        /// False where it was the newest version already.
        new: bool,
    },
    /// A tracker fetches its copy.
    Pinning {
        /// The file.
        name: Name,
        /// Bytes that the tracker has.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A tracker has its copy.
    Pinned {
        /// The file.
        name: Name,
    },
    /// So much is downloaded and verified.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
        /// Peers that it is fetched from.
        providers: u32,
    },
    /// The download is there.
    Complete {
        /// Its name.
        name: Name,
        /// Its id.
        id: FileId,
        /// Where it was written; none: in the library.
        path: Option<PathBuf>,
        /// Its size in bytes.
        bytes: u64,
        /// How long it took.
        seconds: f64,
    },
    /// A line of the library.
    File(LibraryLine),
    /// It was written there.
    Exported {
        /// Its id.
        id: FileId,
        /// Where to.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// It is no longer in the library.
    Removed {
        /// Its name; none for a member of a folder.
        name: Option<Name>,
        /// Its id.
        id: FileId,
    },
    /// A file was hashed again.
    Verified {
        /// Its name; none for a member of a folder.
        name: Option<Name>,
        /// Its id.
        id: FileId,
        /// Pieces that are there and right.
        good: u64,
        /// Pieces that were wrong.
        bad: u64,
        /// Pieces that were not there to begin with.
        missing: u64,
    },
    /// How the peer does.
    Status(NodeStatus),
    /// An invitation was made.
    Invitation {
        /// The line with its secret.
        invitation: String,
        /// What it is called.
        id: String,
        /// How many may come in.
        uses: u32,
        /// Until when, in milliseconds since 1970-01-01 UTC.
        until_ms: u64,
    },
    /// An invitation that still lets somebody in.
    OpenInvitation(InvitationLine),
    /// Nobody comes in by an invitation any more.
    Cancelled {
        /// What it is called.
        id: String,
    },
    /// Somebody who is in, or was.
    Member(MemberLine),
    /// A peer is out.
    Revoked {
        /// Its id.
        peer: PeerId,
        /// False where it was out already.
        new: bool,
        /// The invitations that it came by and that were cancelled with it, as they were before.
        cancelled: Vec<InvitationLine>,
    },
    /// A name is reserved, or free again.
    Reserved {
        /// The name.
        name: Name,
        /// Who may publish it; none: everybody.
        by: Option<PeerId>,
    },
    /// Something that the user should know and that stops nothing.
    Warning {
        /// What, in one line.
        message: String,
    },
    /// The last event: all went well.
    Done,
    /// The last event: it did not.
    Failed(Failure),
}

/// A file in the library.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LibraryLine {
    /// Its name.
    pub name: Name,
    /// Its id.
    pub id: FileId,
    /// Its size in bytes.
    pub size: u64,
    /// How many pieces it has.
    pub pieces: u32,
    /// How many of them are there.
    pub have: u32,
    /// `database`, `files` or `linked`.
    pub content: String,
    /// Where it lies, if it is linked.
    pub path: Option<PathBuf>,
    /// What it is.
    pub kind: FileKind,
    /// It is linked, and the linked file changed or vanished.
    pub withdrawn: bool,
}

/// An invitation into a swarm. Times are in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationLine {
    /// What it is called, in hexadecimal digits.
    pub id: String,
    /// What those may do who come in by it.
    pub rights: Rights,
    /// How many more may come in.
    pub uses: u32,
    /// Until when.
    pub until_ms: u64,
    /// When it was made.
    pub made_ms: u64,
}

/// A member of a swarm by invitation. Times are in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberLine {
    /// Its id.
    pub peer: PeerId,
    /// What it may do.
    pub rights: Rights,
    /// When it came in.
    pub joined_ms: u64,
    /// Its last sign of life; none where it was not there for long.
    pub seen_ms: Option<u64>,
    /// Whether it is there now.
    pub alive: bool,
    /// When it was thrown out.
    pub revoked_ms: Option<u64>,
    /// What the invitations are called that it came by.
    pub invitations: Vec<String>,
}

/// How a peer does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub peer: PeerId,
    /// The process.
    pub pid: u32,
    /// The version of the program.
    pub program: String,
    /// Seconds since it started.
    pub uptime: f64,
    /// Whether it is `enjambre peer`, and not a command that will soon be done.
    pub daemon: bool,
    /// Where it listens.
    pub listen: Vec<Endpoint>,
    /// Files in the library.
    pub files: u64,
    /// Those of them that it published itself.
    pub published: u64,
    /// Bytes of content in the library.
    pub bytes: u64,
    /// Bytes of pieces sent since the start.
    pub sent: u64,
    /// How it does with each of its trackers.
    pub trackers: Vec<TrackerLine>,
}

/// What a peer knows of a tracker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerLine {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Whether the peer is known there.
    pub connected: bool,
    /// What is wrong.
    pub problem: Option<String>,
}

/// Takes the events of a running command.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    /// A sink and its other end, which holds a few events at most.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self(sender), receiver)
    }

    /// Passes an event on; waits while the other end is slow.
    pub async fn send(&self, event: Event) {
        // Without anybody at the other end the command is about to be cancelled.
        let _ = self.0.send(event).await;
    }

    /// Passes on an event that a later one makes up for; drops it while the other end is slow.
    pub fn progress(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    /// Tells the user something.
    pub async fn warn(&self, message: impl Into<String>) {
        self.send(Event::Warning { message: message.into() }).await;
    }
}

/// Runs commands. Dropping the future cancels the command.
#[async_trait]
pub trait Execute: Send + Sync + 'static {
    /// Runs one command to its end. `Done` and `Failed` are sent by the caller.
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure>;
}

#[async_trait]
impl<T: Execute> Execute for Arc<T> {
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure> {
        (**self).execute(command, events).await
    }
}

/// Runs a command here and shows its events.
pub async fn run_here(
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
