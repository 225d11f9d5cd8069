//! Parts of a catalogue.

use enjambre_core::{Endpoint, FileId, FileKind, FileRecord, Name, PeerId, Provider, UnixMillis};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// A file or directory of the catalogue, by the claims of its publisher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogueLine {
    /// The name of the file or directory.
    #[schema(value_type = String)]
    pub name: Name,
    /// The id of the file or directory.
    #[schema(value_type = String)]
    pub id: FileId,
    /// Size in bytes. For a directory, the size of its list of files.
    pub size: u64,
    /// The type of the content.
    #[schema(schema_with = schema::file_kind)]
    pub kind: FileKind,
    /// Number of providers that have the whole file, up to 1,000.
    pub providers: u32,
    /// The time of the publication, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub published_ms: UnixMillis,
    /// The version of the name.
    pub version: u64,
    /// The peer that published the version.
    #[schema(value_type = String)]
    pub publisher: PeerId,
}

impl From<FileRecord> for CatalogueLine {
    fn from(file: FileRecord) -> Self {
        let FileRecord { id, name, version, size, kind, publisher, published_ms, providers } = file;
        Self { name, id, size, kind, providers, published_ms, version, publisher }
    }
}

/// A part of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CataloguePage {
    /// The files and directories by name, newest version first. Can be fewer than requested before the end.
    pub files: Vec<CatalogueLine>,
    /// The cursor of the next page. `null` on the last page.
    pub next: Option<String>,
}

/// Maximum number of versions in a [`FileDetail`].
pub const MAX_VERSIONS: usize = 100;

/// A file or directory of the catalogue with its providers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileDetail {
    /// The name of the file or directory.
    #[schema(value_type = String)]
    pub name: Name,
    /// The id of the file or directory.
    #[schema(value_type = String)]
    pub id: FileId,
    /// Size in bytes. For a directory, the size of its list of files.
    pub size: u64,
    /// The type of the content.
    #[schema(schema_with = schema::file_kind)]
    pub kind: FileKind,
    /// The version of the name.
    pub version: u64,
    /// The time of the publication, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub published_ms: UnixMillis,
    /// The peer that published the version.
    #[schema(value_type = String)]
    pub publisher: PeerId,
    /// Peers that are online and offer the file; of many, a random choice.
    pub providers: Vec<ProviderLine>,
    /// The newest versions of the name, at most 100, newest first.
    pub versions: Vec<CatalogueLine>,
}

impl FileDetail {
    /// Combines a file with its providers and the versions of its name.
    pub fn new(file: FileRecord, providers: Vec<Provider>, versions: Vec<FileRecord>) -> Self {
        let FileRecord { id, name, version, size, kind, publisher, published_ms, .. } = file;
        let providers = providers.into_iter().map(ProviderLine::from).collect();
        let versions = versions.into_iter().map(CatalogueLine::from).collect();
        Self { name, id, size, kind, version, published_ms, publisher, providers, versions }
    }
}

/// A peer that offers a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProviderLine {
    /// The peer.
    #[schema(value_type = String)]
    pub peer: PeerId,
    /// Its endpoints.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<Endpoint>,
    /// Whether it has the whole file.
    pub complete: bool,
}

impl From<Provider> for ProviderLine {
    fn from(Provider { peer, endpoints, complete, .. }: Provider) -> Self {
        Self { peer, endpoints, complete }
    }
}

/// Some of the peers that are online.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerPage {
    /// The peers.
    pub peers: Vec<OnlinePeer>,
    /// The cursor of the next page. `null` on the last page.
    pub next: Option<String>,
}

/// A peer that is online.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OnlinePeer {
    /// The peer.
    #[schema(value_type = String)]
    pub peer: PeerId,
    /// The endpoints that other peers receive.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<Endpoint>,
    /// Number of files that the peer offers, up to 1,000.
    pub files: u64,
    /// The end of the lease if the peer does not renew it, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub lease_until_ms: UnixMillis,
}
