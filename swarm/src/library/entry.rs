//! Public descriptions of the files in the library, and the events of the library.

use std::fmt;
use std::io;
use std::path::PathBuf;

use enjambre_core::{FileId, FileKind, Name, UnixMillis};
use serde::{Deserialize, Serialize};

/// The origin of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Published by this peer.
    Published,
    /// Downloaded from other peers.
    Downloaded,
}

/// The location of the content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The content database.
    Database,
    /// A plain file of the library.
    Files,
    /// A file of the user.
    Linked {
        /// The absolute path. While the file is incomplete, its content is in `PATH.enjambre-part`.
        path: PathBuf,
    },
}

/// A file of the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The hash of the content.
    pub id: FileId,
    /// The newest name, or `None` for a file that is only a member of a collection.
    pub name: Option<Name>,
    /// All names, the newest last.
    pub names: Vec<Name>,
    /// The kind of the file.
    pub kind: FileKind,
    /// The size in bytes.
    pub size: u64,
    /// The number of pieces.
    pub pieces: u32,
    /// The number of stored pieces; 0 for a withdrawn file.
    pub have: u32,
    /// The origin of the file.
    pub origin: Origin,
    /// The location of the content.
    pub location: Location,
    /// The time at which the file was added.
    pub added_ms: UnixMillis,
    /// Why a linked file is not offered. It is offered again when its content is back or was downloaded again.
    pub withdrawn: Option<WithdrawReason>,
}

/// The reason why a linked file is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithdrawReason {
    /// No file exists at its paths, for example because a disk is not mounted.
    Missing,
    /// The file has other content.
    Changed,
    /// The file cannot be read, for example because of its permissions.
    Unreadable,
}

impl WithdrawReason {
    /// The reason for a failed access to a file.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            _ => Self::Unreadable,
        }
    }
}

impl fmt::Display for WithdrawReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::Unreadable => "unreadable",
        })
    }
}

impl Entry {
    /// Whether all pieces are stored.
    pub const fn is_complete(&self) -> bool {
        self.have == self.pieces && self.withdrawn.is_none()
    }

    /// Returns the number of stored bytes. Approximate for an incomplete file, since its last piece may be
    /// shorter.
    pub fn stored_bytes(&self) -> u64 {
        let bytes = u128::from(self.size) * u128::from(self.have) / u128::from(self.pieces.max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// The maximum number of files in [`Totals::withdrawn_files`].
pub const MAX_WITHDRAWN: usize = 20;

/// The number and size of the files of a library.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files with a name: all but those that are only members of a collection.
    pub named: u64,
    /// Files with a name that this peer published.
    pub published: u64,
    /// Files with all pieces.
    pub complete: u64,
    /// Files without some pieces.
    pub incomplete: u64,
    /// Linked files that are not offered.
    pub withdrawn: u64,
    /// The first of these, at most [`MAX_WITHDRAWN`].
    pub withdrawn_files: Vec<Entry>,
    /// The stored bytes of all files.
    pub bytes: u64,
}

/// The properties of a new file that its manifest does not contain.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// The requested name, or `None` for a member of a collection.
    pub name: Option<Name>,
    /// The kind of the file.
    pub kind: FileKind,
    /// The collection that contains the file.
    pub member_of: Option<FileId>,
}

/// A change of the files that the library offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibraryEvent {
    /// A file was published, its download began, or it lost pieces. For a file with one piece: the piece was
    /// stored.
    Added(FileId),
    /// All pieces of a file are stored.
    Completed(FileId),
    /// Pieces in the library's own store are damaged and were dropped.
    Damaged(FileId),
    /// A linked file was changed or deleted.
    Withdrawn(FileId),
    /// A file was removed.
    Removed(FileId),
}

impl LibraryEvent {
    /// The file.
    pub const fn id(&self) -> FileId {
        match self {
            Self::Added(id)
            | Self::Completed(id)
            | Self::Damaged(id)
            | Self::Withdrawn(id)
            | Self::Removed(id) => *id,
        }
    }
}

/// The version that a catalogue assigned to a published name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedVersion {
    /// The version of the name.
    pub version: u64,
    /// Whether the publication created the version. False if the file already was the newest version of the
    /// name.
    pub new: bool,
}

/// The result of verifying every stored piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// The file.
    pub id: FileId,
    /// The number of valid pieces.
    pub good: u32,
    /// The numbers of the invalid pieces, which were dropped.
    pub bad: Vec<u32>,
    /// The number of pieces that were not stored.
    pub missing: u32,
}
