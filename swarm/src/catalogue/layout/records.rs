//! The records of a catalogue.

use serde::{Deserialize, Serialize};

use enjambre_core::model::membership::Rights;
use enjambre_core::model::secret::SecretHash;
use enjambre_core::{Endpoint, FileId, FileKind, FileRecord, Name, PeerId, SessionId, UnixMillis};

use super::keys::FileNumber;

/// The only format version that this program reads and writes.
pub const FORMAT: u64 = 1;

/// The record under `format`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatRecord {
    /// The format version.
    pub v: u64,
    /// The purpose of the database: `catalogue`.
    pub what: String,
}

/// One version of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// The file.
    pub id: FileId,
    /// The size in bytes, as the publisher claims.
    pub size: u64,
    /// Whether the file is a collection.
    pub kind: FileKind,
    /// The time of the publication.
    pub at: UnixMillis,
    /// The publisher.
    pub by: PeerId,
    /// The number of the file.
    pub no: FileNumber,
}

impl VersionRecord {
    /// Returns this version of a name as a file record.
    pub fn with_name(self, name: Name, version: u64, providers: u32) -> FileRecord {
        let Self { id, size, kind, at, by, .. } = self;
        FileRecord { id, name, version, size, kind, published_ms: at, publisher: by, providers }
    }
}

/// A file and the version of a name as which it was last published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The name of the latest publication.
    pub name: Name,
    /// The version of that name.
    pub version: u64,
    /// The size in bytes, as the publisher claims.
    pub size: u64,
    /// Whether the file is a collection.
    pub kind: FileKind,
    /// The time of the publication.
    pub at: UnixMillis,
    /// The publisher.
    pub by: PeerId,
    /// The number of the file.
    pub no: FileNumber,
    /// The time since which the file has no living provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<UnixMillis>,
}

impl FileEntry {
    /// Returns this file as a file record.
    pub fn with_id(self, id: FileId, providers: u32) -> FileRecord {
        let Self { name, version, size, kind, at, by, .. } = self;
        FileRecord { id, name, version, size, kind, published_ms: at, publisher: by, providers }
    }
}

/// The lease of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The peer.
    pub id: PeerId,
    /// The peer's newest session; all earlier ones are void.
    pub session: SessionId,
    /// The start time of that session; unique among the sessions of the peer.
    pub began: UnixMillis,
    /// The last stored renewal.
    pub renewed: UnixMillis,
    /// The endpoints that other peers receive.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints that the peer requested, if they differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requested: Vec<Endpoint>,
    /// Whether the session is valid only on connections that authenticate the peer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub authenticated: bool,
    /// Whether the peer has ever offered a file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offered: bool,
    /// Whether the peer ended its session.
    pub left: bool,
    /// Whether the claims of earlier sessions were deleted.
    pub settled: bool,
}

impl LeaseRecord {
    /// Whether a requester on this host, or on another host, can reach an endpoint of the peer.
    pub fn is_reachable(&self, is_local: bool) -> bool {
        self.endpoints.iter().any(|endpoint| is_local || !endpoint.is_loopback())
    }
}

/// The pin of a file by one peer. The tracker stores a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRecord {
    /// The bytes reserved for the replica: what is stored of it, and some more while it is fetched.
    pub size: u64,
    /// Whether the replica is complete and durable.
    pub complete: bool,
    /// The time of the request.
    pub at: UnixMillis,
}

/// An invitation, stored under the hash of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationRecord {
    /// The rights of members that join with it.
    pub rights: Rights,
    /// The number of peers that can still join.
    pub uses: u32,
    /// The time of expiry.
    pub until: UnixMillis,
    /// The time of creation.
    pub at: UnixMillis,
}

/// A member of an invite-only swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The rights of the member.
    pub rights: Rights,
    /// The time of joining.
    pub joined: UnixMillis,
    /// The time of the revocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<UnixMillis>,
    /// The hashes of the secrets of the invitation with which it joined, and of a later one that extended its rights.
    pub invitations: Vec<SecretHash>,
}

/// A name that only one peer may publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationRecord {
    /// The peer that may publish the name.
    pub by: PeerId,
    /// The time of the reservation.
    pub at: UnixMillis,
}

/// The total of several pins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedRecord {
    /// The bytes reserved.
    pub bytes: u64,
    /// The number of pins.
    pub pins: u64,
}
