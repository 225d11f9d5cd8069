//! What the library tells about a file it knows.

use std::path::PathBuf;

use crate::model::id::FileId;
use crate::model::name::Name;
use crate::model::record::FileKind;

/// Where a file came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Published by this peer.
    Published,
    /// Fetched from other peers.
    Downloaded,
}

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In the content database.
    Database,
    /// In a plain file of the library.
    Files,
    /// In a file that belongs to the user.
    Linked {
        /// The absolute path. While the file is incomplete the content is beside it, in `PATH.enjambre-part`.
        path: PathBuf,
    },
}

/// A file that the library knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The hash of the content.
    pub id: FileId,
    /// The newest of its names; none for what is only a member of a collection.
    pub name: Option<Name>,
    /// All of its names, the newest last.
    pub names: Vec<Name>,
    /// What it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// How many pieces it has.
    pub pieces: u32,
    /// How many of them are here; 0 for a linked file that was withdrawn.
    pub have: u32,
    /// Where it came from.
    pub origin: Origin,
    /// Where the content is.
    pub location: Location,
    /// When it was added, in milliseconds since 1970-01-01 UTC.
    pub added_ms: u64,
    /// The linked file changed or vanished: it is not offered until it is verified or fetched again.
    pub withdrawn: bool,
}

impl Entry {
    /// Whether all of its pieces are here.
    pub const fn is_complete(&self) -> bool {
        self.have == self.pieces && !self.withdrawn
    }
}

/// What a new file is, beyond its manifest.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// The name under which it was asked for; none for a member of a collection.
    pub name: Option<Name>,
    /// What it is.
    pub kind: FileKind,
    /// The collection it belongs to.
    pub member_of: Option<FileId>,
}

/// A change in what the library has, for whoever announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibraryEvent {
    /// A file is there for the first time, or again after a loss: published, or being fetched; one of a single piece
    /// once that is here.
    Added(FileId),
    /// Every piece of a file is there.
    Completed(FileId),
    /// Pieces that the library had in its own store turned out to be damaged. They are no longer claimed.
    Damaged(FileId),
    /// A linked file changed or vanished.
    Withdrawn(FileId),
    /// A file was removed.
    Removed(FileId),
}

/// What a check of every piece of a file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// The file.
    pub id: FileId,
    /// How many pieces were read and are right.
    pub good: u32,
    /// The numbers of those that were wrong; they are no longer claimed.
    pub bad: Vec<u32>,
    /// How many pieces were not here to begin with.
    pub missing: u32,
}
