//! What is known of a published file and of who offers it.

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::id::{FileId, PeerId};
use super::name::Name;

/// What the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Bytes that mean nothing to Enjambre.
    File,
    /// The list of the files of a directory, see [`super::collection::Collection`].
    Collection,
}

/// One published version of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The hash of the content.
    pub id: FileId,
    /// The name it was published under.
    pub name: Name,
    /// The number of this version of the name, from 1.
    pub version: u64,
    /// The size in bytes, as its publisher claims; proven only by its last piece.
    pub size: u64,
    /// What the content is.
    pub kind: FileKind,
    /// When it was published, in milliseconds since 1970-01-01 UTC by the tracker's clock.
    pub published_ms: u64,
    /// Who published it.
    pub publisher: PeerId,
    /// How many living peers offer it, complete or in part.
    pub providers: u32,
}

/// What a publisher says of a file that it puts into the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Publication {
    /// The name.
    pub name: Name,
    /// The hash of the content.
    pub id: FileId,
    /// The size in bytes.
    pub size: u64,
    /// What the content is.
    pub kind: FileKind,
}

/// A living peer that offers a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Who it is.
    pub peer: PeerId,
    /// Where it can be reached, the best first.
    pub endpoints: Vec<Endpoint>,
    /// The size in bytes that it claims the file has.
    pub size: u64,
    /// Whether it said that it has the whole file.
    pub complete: bool,
}

/// What a peer offers: one line of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The file.
    pub id: FileId,
    /// The size in bytes that the peer claims it has.
    pub size: u64,
    /// Whether the peer has the whole file.
    pub complete: bool,
}
