//! Records of published files and of their providers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::id::{FileId, PeerId};
use super::name::Name;
use super::time::UnixMillis;

/// The type of the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Opaque bytes.
    File,
    /// Opaque bytes of a file that is executable by its owner.
    Executable,
    /// The list of the files of a directory, see [`super::collection::Collection`].
    Collection,
}

impl FileKind {
    /// The kind of a file without members.
    pub const fn of_file(executable: bool) -> Self {
        if executable { Self::Executable } else { Self::File }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Executable => "executable",
            Self::Collection => "collection",
        })
    }
}

/// A published version of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The hash of the content.
    pub id: FileId,
    /// The name.
    pub name: Name,
    /// The version of the name, from 1.
    pub version: u64,
    /// The size in bytes, as claimed by the publisher. Only the last piece proves it.
    pub size: u64,
    /// The type of the content.
    pub kind: FileKind,
    /// The time of publication, by the clock of the tracker.
    pub published_ms: UnixMillis,
    /// The publisher.
    pub publisher: PeerId,
    /// The number of active peers that have the whole file and that the requester can reach.
    pub providers: u32,
}

/// A file as its publisher registers it in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Publication {
    /// The name.
    pub name: Name,
    /// The hash of the content.
    pub id: FileId,
    /// The size in bytes.
    pub size: u64,
    /// The type of the content.
    pub kind: FileKind,
}

/// An active peer that offers a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// The id of the peer.
    pub peer: PeerId,
    /// Its endpoints, in order of preference.
    pub endpoints: Vec<Endpoint>,
    /// The size of the file in bytes, as claimed by the peer.
    pub size: u64,
    /// Whether the peer claims to have the whole file.
    pub complete: bool,
}

/// An entry of an announcement: a file that a peer offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The file.
    pub id: FileId,
    /// The size of the file in bytes, as claimed by the peer.
    pub size: u64,
    /// Whether the peer has the whole file.
    pub complete: bool,
}
