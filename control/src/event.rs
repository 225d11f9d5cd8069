//! Events of a running command.

use std::path::PathBuf;

use enjambre_core::model::membership::Rights;
use enjambre_core::protocol::message::PinStatus;
use enjambre_core::{FileId, FileKind, Name, PeerId, UnixMillis};
use enjambre_swarm::library::entry::WithdrawReason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::catalogue::{CataloguePage, FileDetail, PeerPage};
use crate::download::{Download, DownloadDetail, DownloadList};
use crate::failure::Failure;
use crate::node::{Limits, LogTail, NodeStatus, Settings, TrackerNodeStatus};
use crate::schema;

/// An event of a running command. `done`, `total`, `size` and `bytes` are numbers of bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Progress of hashing or copying a file.
    Hashing {
        /// The file.
        path: PathBuf,
        /// Bytes that were hashed.
        done: u64,
        /// Size of the file or directory; 0 if it is unknown.
        total: u64,
    },
    /// A file or directory was published.
    Published(Published),
    /// Progress of a replica at a tracker.
    Pinning {
        /// The file or directory.
        name: Name,
        /// Bytes that the tracker stores.
        done: u64,
        /// Size of the file or directory.
        total: u64,
    },
    /// A tracker stores a replica.
    Pinned {
        /// The file or directory.
        name: Name,
    },
    /// Progress of a download.
    Progress {
        /// Bytes that are stored.
        done: u64,
        /// Size of the file or directory.
        total: u64,
        /// Number of providers in use.
        providers: u32,
    },
    /// The contents of a directory, before any of it is written.
    Directory {
        /// The directory.
        name: Name,
        /// Number of files.
        files: u64,
        /// Total size of the files.
        bytes: u64,
        /// Number of files whose path has a component that begins with a dot.
        hidden: u64,
        /// The first of these paths.
        first_hidden: Vec<String>,
    },
    /// A file of a directory.
    DirectoryEntry {
        /// The path in the directory.
        path: String,
        /// Size of the file.
        size: u64,
        /// Whether the owner of the file can execute it.
        executable: bool,
    },
    /// The next bytes of a file.
    Content {
        /// The bytes in Base64.
        data: String,
    },
    /// A download is complete.
    Complete {
        /// The name of the file or directory.
        name: Name,
        /// The path of the subdirectory, if only a part of the directory was downloaded. It has no id of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subdirectory: Option<String>,
        /// The id of the file or directory.
        id: FileId,
        /// The path of the download. `None` if it is stored in the library.
        path: Option<PathBuf>,
        /// The inode at the path, by which the client checks that it sees the same file.
        inode: Option<u64>,
        /// Size of the file or directory.
        bytes: u64,
        /// The part of `bytes` that was not stored before the command.
        received: u64,
        /// Duration of the download.
        seconds: f64,
    },
    /// All downloads.
    Downloads(DownloadList),
    /// A download.
    Download(Download),
    /// A download with its sources and pieces.
    DownloadDetail(DownloadDetail),
    /// A file or directory is in the download queue.
    DownloadStarted {
        /// The entry of the queue.
        download: Download,
        /// Whether the command added it.
        new: bool,
    },
    /// A file or directory of the library.
    File(LibraryLine),
    /// A file or directory was exported.
    Exported(Exported),
    /// A file or directory was removed.
    Removed(Removed),
    /// A file was verified.
    Verified(Verified),
    /// The status of a peer.
    Status(NodeStatus),
    /// The status of a tracker.
    TrackerStatus(TrackerNodeStatus),
    /// The effective settings.
    Settings(Settings),
    /// The bandwidth limits.
    Limits(Limits),
    /// The library changed.
    LibraryChanged,
    /// A part of the catalogue.
    Catalogue(CataloguePage),
    /// A file of the catalogue.
    FileDetail(FileDetail),
    /// Peers that are online.
    OnlinePeers(PeerPage),
    /// The progress of the replica of a pinned file.
    Replica(Replica),
    /// Lines of the log.
    LogTail(LogTail),
    /// The log level.
    LogLevel {
        /// As in the setting `log.level`.
        level: String,
    },
    /// A pinned file.
    Pin(PinLine),
    /// A file is no longer pinned.
    Unpinned {
        /// The file.
        id: FileId,
    },
    /// An invitation was created.
    Invitation(NewInvitation),
    /// An invitation that peers can still use.
    OpenInvitation(InvitationLine),
    /// An invitation was cancelled.
    Cancelled {
        /// The invitation.
        id: String,
    },
    /// A member of the swarm.
    Member(MemberLine),
    /// A membership was revoked.
    Revoked(Revoked),
    /// A name was reserved or released.
    Reserved(Reserved),
    /// A problem that does not stop the command.
    Warning {
        /// The problem.
        message: String,
    },
    /// The command is running, and there is no other event.
    Alive,
    /// Final event: the command succeeded.
    Done,
    /// Final event: the command failed.
    Failed(Failure),
}

/// A published file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Published {
    /// The name in the catalogue.
    #[schema(value_type = String)]
    pub name: Name,
    /// The id of the file or directory.
    #[schema(value_type = String)]
    pub id: FileId,
    /// Size in bytes. For a directory, the total size of its files.
    pub size: u64,
    /// The type of the content.
    #[schema(schema_with = schema::file_kind)]
    pub kind: FileKind,
    /// The version of the name.
    pub version: u64,
    /// Whether this is a new version.
    pub new: bool,
}

/// A file or directory that was exported from the library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exported {
    /// The id of the file or directory.
    #[schema(value_type = String)]
    pub id: FileId,
    /// The path of the export.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Size of the file or directory.
    pub bytes: u64,
}

/// A file or directory that was removed from the library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// The removed name. `null` for a member of a directory.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// The id of the file or directory.
    #[schema(value_type = String)]
    pub id: FileId,
    /// Another name of the file, which therefore stays in the library.
    #[schema(value_type = Option<String>)]
    pub left: Option<Name>,
}

/// A verified file, with its number of valid, damaged and missing pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// `NAME/PATH` for a member of a directory. `null` if the name is unknown.
    pub name: Option<String>,
    /// The file.
    #[schema(value_type = String)]
    pub id: FileId,
    /// Number of valid pieces.
    pub good: u64,
    /// Number of damaged pieces, which are no longer offered.
    pub bad: u64,
    /// Number of pieces that are not stored.
    pub missing: u64,
}

/// A file or directory of the library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LibraryLine {
    /// The newest name of the file or directory.
    #[schema(value_type = String)]
    pub name: Name,
    /// All names, the newest first.
    #[schema(value_type = Vec<String>)]
    pub names: Vec<Name>,
    /// The id of the file or directory.
    #[schema(value_type = String)]
    pub id: FileId,
    /// Size in bytes. For a directory, the total size of its files.
    pub size: u64,
    /// Number of pieces.
    pub pieces: u32,
    /// Number of pieces that are stored.
    pub available_pieces: u32,
    /// Where the content is: `database`, `files` or `linked`.
    pub content: String,
    /// The path of the linked file or directory. If a directory is linked in part, the directory with most of its files.
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// The type of the content.
    #[schema(schema_with = schema::file_kind)]
    pub kind: FileKind,
    /// Why the linked file is not offered.
    #[schema(schema_with = schema::optional_withdraw_reason)]
    pub withdrawn: Option<WithdrawReason>,
}

/// The pin of a file by a peer. Trackers store a replica, which all pins of the file share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinLine {
    /// The file.
    #[schema(value_type = String)]
    pub id: FileId,
    /// The name of the file, if the catalogue contains it.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Bytes reserved for the replica: what is stored of it, and some more while it is fetched.
    pub reserved: u64,
    /// Whether the whole file is stored durably.
    pub complete: bool,
    /// The time of the pin, by the clock of the tracker, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub pinned_ms: UnixMillis,
    /// The peer that pinned the file.
    #[schema(value_type = String)]
    pub peer: PeerId,
}

/// The progress of a replica at a tracker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// The file.
    #[schema(value_type = String)]
    pub id: FileId,
    /// Bytes that the tracker stores.
    pub stored: u64,
    /// Whether the whole file is stored durably.
    pub complete: bool,
}

impl From<PinStatus> for PinLine {
    fn from(PinStatus { id, name, reserved, complete, pinned_ms, peer }: PinStatus) -> Self {
        Self { id, name, reserved, complete, pinned_ms, peer }
    }
}

/// A created invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewInvitation {
    /// The invitation, which contains a secret.
    pub invitation: String,
    /// The id of the invitation.
    pub id: String,
    /// Number of peers that can join.
    pub uses: u32,
    /// End of the validity period, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub expires_ms: UnixMillis,
}

/// An invitation to a swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvitationLine {
    /// The id of the invitation.
    pub id: String,
    /// The rights of peers that join with the invitation.
    #[schema(schema_with = schema::rights)]
    pub rights: Rights,
    /// Number of peers that can still join.
    pub uses: u32,
    /// End of the validity period, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub expires_ms: UnixMillis,
    /// Time of creation, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub created_ms: UnixMillis,
}

/// A member of an invite-only swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberLine {
    /// The peer.
    #[schema(value_type = String)]
    pub peer: PeerId,
    /// The rights of the peer.
    #[schema(schema_with = schema::rights)]
    pub rights: Rights,
    /// When the peer joined, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub joined_ms: UnixMillis,
    /// The time of the last recorded activity, in Unix milliseconds. `null` if it is too long ago.
    #[schema(value_type = Option<u64>)]
    pub last_seen_ms: Option<UnixMillis>,
    /// Whether the peer has a valid lease.
    pub online: bool,
    /// When the membership was revoked, in Unix milliseconds.
    #[schema(value_type = Option<u64>)]
    pub revoked_ms: Option<UnixMillis>,
    /// The ids of the invitations with which the peer joined.
    pub invitations: Vec<String>,
}

/// A revoked membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Revoked {
    /// The peer.
    #[schema(value_type = String)]
    pub peer: PeerId,
    /// Whether the peer was not revoked before.
    pub new: bool,
    /// The invitations of the peer that were cancelled with the revocation, in their previous state.
    pub cancelled: Vec<InvitationLine>,
}

/// A name that one peer can publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reserved {
    /// The name.
    #[schema(value_type = String)]
    pub name: Name,
    /// The peer that can publish the name. `null` if the name was released.
    #[schema(value_type = Option<String>)]
    pub peer: Option<PeerId>,
    /// The peer for which the name was reserved before.
    #[schema(value_type = Option<String>)]
    pub replaced: Option<PeerId>,
}
