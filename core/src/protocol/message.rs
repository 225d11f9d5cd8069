//! All requests and replies.
//!
//! Unknown fields are ignored, so a later version can add fields. A different meaning requires a new kind.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bounds;
use crate::model::endpoint::Endpoint;
use crate::model::gap::Gap;
use crate::model::id::{FileId, PeerId};
use crate::model::identity::{PublicKey, Signature};
use crate::model::membership::SignedMembership;
use crate::model::name::Name;
use crate::model::record::{FileKind, FileRecord, Offer, Provider};
use crate::model::secret::Secret;
use crate::model::session::{CatalogueId, SessionId};
use crate::model::time::UnixMillis;
use crate::transport::envelope::RequestId;

/// Maximum number of offers or ids in an `announce` or `withdraw` request.
pub const MAX_OFFERS: usize = 800;
/// Maximum number of files in a page of a list.
pub const MAX_LIST: usize = 1000;
/// Maximum number of endpoints of a peer.
pub const MAX_ENDPOINTS: usize = 8;
/// Maximum number of providers in a reply.
pub const MAX_PROVIDERS: usize = 100;
/// Maximum number of ids in a `cancel` request.
pub const MAX_CANCEL: usize = 1000;
/// Maximum number of ids in a `files` request.
pub const MAX_FILES: usize = 512;
/// Maximum number of pins in a reply.
pub const MAX_PINS: usize = 100;
/// Maximum number of [`Gap`]s in a reply.
pub const MAX_GAPS: usize = 8;
/// Maximum length of a pattern or query in bytes.
pub const MAX_QUERY: usize = 300;

/// A random value that a peer signs to open a session. A tracker accepts it once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nonce(#[serde(with = "crate::model::bytes")] pub [u8; 32]);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({}..)", hex::encode(&self.0[..4]))
    }
}

/// Proof that a peer has its private key, sent in the second `open_session` request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionProof {
    /// The public key of the peer.
    pub key: PublicKey,
    /// The nonce from the reply to the first `open_session` request on the same connection.
    pub nonce: Nonce,
    /// The signature of [`SessionProof::signed_bytes`].
    pub signature: Signature,
    /// The endpoints of the peer. The tracker replaces an unspecified host (`0.0.0.0`, `::`) by the address that it sees.
    /// Empty for a peer that offers nothing.
    #[serde(deserialize_with = "bounds::canonical_endpoints")]
    pub endpoints: Vec<Endpoint>,
}

impl SessionProof {
    /// Returns the bytes that the peer signs: the text `enjambre session 1`, the id of the tracker, the catalogue id, the nonce,
    /// and the BLAKE3 hash of the texts of the endpoints, each followed by a line feed.
    ///
    /// The tracker is the authenticated remote of the connection, so that a tracker cannot use the proof at another one.
    /// Without authentication it is `None`, signed as 32 zero bytes.
    pub fn signed_bytes(
        tracker: Option<PeerId>,
        catalogue: CatalogueId,
        nonce: Nonce,
        endpoints: &[Endpoint],
    ) -> Vec<u8> {
        let tracker = tracker.map_or([0; 32], |id| *id.as_bytes());
        let mut hasher = blake3::Hasher::new();
        for endpoint in endpoints {
            hasher.update(endpoint.to_string().as_bytes()).update(b"\n");
        }
        [&b"enjambre session 1"[..], &tracker, &catalogue.0, &nonce.0, hasher.finalize().as_bytes()].concat()
    }
}

/// A request to a tracker or a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// To a tracker: requests a nonce, or with `proof` opens a session. A newer session of a peer voids the older ones. The
    /// reply is [`Reply::OpenSession`].
    OpenSession {
        /// `None` in the first step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<SessionProof>,
    },
    /// To a tracker: adds a file to the catalogue under a name, and the sender to the providers of the file. The reply is
    /// [`Reply::Published`], after a durable commit.
    Publish {
        /// The session of the sender.
        session: SessionId,
        /// The name.
        name: Name,
        /// The file, of which the sender has the complete content.
        id: FileId,
        /// The size in bytes.
        size: u64,
        /// The kind of the file.
        kind: FileKind,
        /// If the sender repeats a publication: its version. A catalogue that has this or a higher version of the name with this
        /// file adds none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again: Option<u64>,
    },
    /// To a tracker: the sender offers these files from now on, at most [`MAX_OFFERS`]. The reply is [`Reply::Announced`].
    Announce {
        /// The session of the sender.
        session: SessionId,
        /// The files and the state of the sender's copies.
        offers: Vec<Offer>,
    },
    /// To a tracker: the sender stops offering these files, at most [`MAX_OFFERS`]. The reply is [`Reply::Done`].
    Withdraw {
        /// The session of the sender.
        session: SessionId,
        /// The files.
        ids: Vec<FileId>,
    },
    /// To a tracker: extends the sender's lease. The reply is [`Reply::Renewed`]. After the error `unauthorized`, the sender
    /// opens a new session and announces all its files again.
    Renew {
        /// The session of the sender.
        session: SessionId,
        /// The membership state of the sender.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        membership: Option<MembershipState>,
    },
    /// To a tracker: the sender goes offline. The reply is [`Reply::Done`].
    Leave {
        /// The session of the sender.
        session: SessionId,
    },
    /// To a tracker: stores a replica of a file. Repeated requests return the progress. The reply is [`Reply::Pin`].
    Pin {
        /// The session of the sender.
        session: SessionId,
        /// A file of the catalogue.
        id: FileId,
    },
    /// To a tracker: the replica of a file is no longer needed. The reply is [`Reply::Done`].
    Unpin {
        /// The session of the sender.
        session: SessionId,
        /// The file.
        id: FileId,
    },
    /// To a tracker: requests a page of the pins of the sender. The reply is [`Reply::Pins`].
    Pins {
        /// The session of the sender.
        session: SessionId,
        /// The cursor of the previous page.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<FileId>,
    },
    /// To a tracker of an invite-only swarm: makes the peer of this authenticated connection a member. The reply is
    /// [`Reply::Joined`].
    Join {
        /// The secret of the invitation.
        secret: Secret,
    },
    /// To a peer of an invite-only swarm: proves the membership of the sender. The reply is [`Reply::Authorized`].
    Authorize {
        /// The membership of the sender.
        membership: SignedMembership,
    },
    /// To a tracker: looks up the newest version of a name, or a file by its id or a prefix of it. The reply is
    /// [`Reply::Find`].
    Find {
        /// A name, 64 hexadecimal digits, or at least the first 8 of them.
        query: String,
    },
    /// To a tracker: looks up the providers of a file. The reply is [`Reply::Providers`].
    Providers {
        /// The file.
        id: FileId,
    },
    /// To a tracker: requests a page of the catalogue. The reply is [`Reply::List`].
    List {
        /// A substring of the names, or with `*` or `?` a pattern for whole names, or `/` and the whole name. Empty matches all
        /// names.
        #[serde(default, deserialize_with = "bounds::or_default")]
        pattern: String,
        /// The cursor of the previous page.
        #[serde(
            default,
            serialize_with = "serde_bytes::serialize",
            deserialize_with = "bounds::byte_string",
            skip_serializing_if = "Option::is_none"
        )]
        cursor: Option<Vec<u8>>,
        /// Maximum number of files to return, at most [`MAX_LIST`].
        #[serde(deserialize_with = "bounds::saturating_u32")]
        limit: u32,
    },
    /// To a tracker or a peer: requests its status. The reply is [`Reply::TrackerStatus`] or [`Reply::PeerStatus`].
    Status,
    /// To a peer: requests the piece hashes of a file. The reply is [`Reply::Manifest`].
    Manifest {
        /// The file.
        id: FileId,
        /// The index of the first piece.
        #[serde(deserialize_with = "bounds::saturating_u32")]
        first: u32,
    },
    /// To a peer: requests the bitmap of a file. The reply is [`Reply::Have`].
    Have {
        /// The file.
        id: FileId,
        /// Allows the peer to delay the reply until its bitmap changes (long poll).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait: Option<HaveWait>,
    },
    /// To a peer: requests the content of a piece. The reply is [`Reply::Piece`], or with `super_seed` possibly
    /// [`Reply::AlreadySent`].
    Piece {
        /// The file.
        id: FileId,
        /// The index of the piece.
        #[serde(deserialize_with = "bounds::saturating_u32")]
        index: u32,
        /// The sender prefers a piece that the peer has not sent to other peers yet (super-seeding).
        #[serde(
            default,
            deserialize_with = "bounds::or_default",
            skip_serializing_if = "std::ops::Not::not"
        )]
        super_seed: bool,
    },
    /// To a peer: requests the content of small files of at most one piece each, at most [`MAX_FILES`]. The reply is
    /// [`Reply::Files`].
    Files {
        /// The files.
        ids: Vec<FileId>,
    },
    /// To a peer: cancels requests of the same connection. Those that have not started get the error `busy`. The reply is
    /// [`Reply::Done`].
    Cancel {
        /// The request ids, at most [`MAX_CANCEL`].
        ids: Vec<RequestId>,
    },
}

/// The membership state of a member of an invite-only swarm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipState {
    /// The version up to which the member has all revocations; 0 for none.
    pub revocations: u64,
    /// The end of its membership; 0 if it has none.
    pub expires_ms: UnixMillis,
}

/// The condition of a long poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveWait {
    /// The number of pieces that the requester knows of.
    #[serde(deserialize_with = "bounds::saturating_u32")]
    pub known: u32,
    /// Maximum delay of the reply, in milliseconds.
    pub timeout_ms: u64,
}

/// The reply to a request. Kinds with a payload say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// To `open_session`.
    OpenSession {
        /// The catalogue of the tracker.
        catalogue: CatalogueId,
        /// The nonce to sign in the second step.
        nonce: Nonce,
        /// The session, after the second step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grant: Option<SessionGrant>,
    },
    /// To `publish`.
    Published {
        /// The version of the name.
        version: u64,
        /// False if the file already was the newest version.
        new: bool,
    },
    /// To `announce`.
    Announced {
        /// The files that the catalogue does not contain; they were not added.
        #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_OFFERS>")]
        unknown: Vec<FileId>,
    },
    /// To requests without a result.
    Done,
    /// To `renew`.
    Renewed {
        /// The time of the renewal, by the clock of the tracker.
        now_ms: UnixMillis,
        /// The last periods whose writes the catalogue may lack.
        #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_GAPS>")]
        gaps: Vec<Gap>,
        /// The endpoints that other peers receive. They follow the address from which the sender reaches the tracker.
        #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_ENDPOINTS>")]
        endpoints: Vec<Endpoint>,
        /// In an invite-only swarm: a new membership, once less than half of the current one remains.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        membership: Option<SignedMembership>,
        /// The next signed page of revocations. The format is in section 9 of `docs/PROTOCOL.md`.
        #[serde(default, deserialize_with = "bounds::byte_string", skip_serializing_if = "Option::is_none")]
        revocations: Option<Bytes>,
        /// Whether further pages follow. The sender then renews again immediately.
        #[serde(
            default,
            deserialize_with = "bounds::or_default",
            skip_serializing_if = "std::ops::Not::not"
        )]
        more: bool,
    },
    /// To `join`.
    Joined {
        /// The membership of the sender.
        membership: SignedMembership,
    },
    /// To `authorize`.
    Authorized {
        /// The membership of the answering peer; `None` if it has no valid one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        membership: Option<SignedMembership>,
    },
    /// To `pin`.
    Pin {
        /// The number of bytes stored so far.
        stored: u64,
        /// Whether the whole file is stored durably.
        complete: bool,
    },
    /// To `pins`.
    Pins {
        /// Pins ordered by id, at most [`MAX_PINS`]. Pages before the last may be short or empty.
        #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_PINS>")]
        pins: Vec<PinStatus>,
        /// The cursor for the next page; `None` on the last page.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<FileId>,
    },
    /// To `find`.
    Find {
        /// The file.
        file: FileRecord,
    },
    /// To `providers`.
    Providers {
        /// Live peers in random order, at most [`MAX_PROVIDERS`].
        #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_PROVIDERS>")]
        providers: Vec<Provider>,
    },
    /// To `list`.
    List {
        /// Files ordered by name, the newest version of a name first. Pages before the last may be empty.
        #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_LIST>")]
        files: Vec<FileRecord>,
        /// The cursor for the next page; `None` on the last page.
        #[serde(
            default,
            serialize_with = "serde_bytes::serialize",
            deserialize_with = "bounds::cursor",
            skip_serializing_if = "Option::is_none"
        )]
        cursor: Option<Vec<u8>>,
    },
    /// To `status`, from a tracker.
    TrackerStatus(TrackerStatus),
    /// To `status`, from a peer.
    PeerStatus(PeerStatus),
    /// To `manifest`. The payload contains the hashes of the pieces from `first`, 32 bytes each, as many as fit.
    Manifest {
        /// The claimed size of the file in bytes.
        size: u64,
    },
    /// To `have`. The payload is the bitmap; empty if the file is complete.
    Have {
        /// The claimed size of the file in bytes.
        size: u64,
        /// Whether the peer has the complete file.
        complete: bool,
    },
    /// To `piece`. The payload is the content.
    Piece,
    /// To `piece` with `super_seed`: the peer has already sent this piece to another peer. The payload is the bitmap of all
    /// pieces already sent.
    AlreadySent,
    /// To `files`. The payload is the concatenated content of the files with a size.
    Files {
        /// The size of each file in the order of the request; `None` if the peer does not have the file, or the file has
        /// several pieces. Covers the prefix of the request that fits; the requester repeats the rest.
        #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_FILES>")]
        sizes: Vec<Option<u64>>,
    },
}

/// A pinned file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// The file.
    pub id: FileId,
    /// The name of the file, if the catalogue contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Bytes reserved for the replica: what is stored of it, and some more while it is fetched.
    pub reserved: u64,
    /// Whether the whole file is stored durably.
    pub complete: bool,
    /// The time of the pin, by the clock of the tracker.
    pub pinned_ms: UnixMillis,
    /// The peer that pinned the file.
    pub peer: PeerId,
}

/// A new session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGrant {
    /// The session. All requests on behalf of the peer carry it.
    pub session: SessionId,
    /// The start of the session, by the clock of the tracker.
    pub now_ms: UnixMillis,
    /// The last periods whose writes the catalogue may lack.
    #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_GAPS>")]
    pub gaps: Vec<Gap>,
    /// The duration of the lease in milliseconds. The peer renews three times per lease.
    pub lease_ms: u64,
    /// The endpoints that other peers receive.
    #[serde(deserialize_with = "bounds::list::<_, _, _, MAX_ENDPOINTS>")]
    pub endpoints: Vec<Endpoint>,
    /// The membership of the peer, in an invite-only swarm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<SignedMembership>,
}

/// The status of a tracker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// The program version.
    #[serde(deserialize_with = "bounds::text")]
    pub program: String,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Versions of names in the catalogue.
    pub files: u64,
    /// Live peers.
    pub peers: u64,
    /// The replica store; `None` if the tracker has none.
    pub store: Option<StoreStatus>,
}

/// The status of the replica store of a tracker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Maximum number of bytes stored.
    pub quota: u64,
    /// Bytes reserved for pinned files.
    pub reserved: u64,
    /// Pinned files.
    pub pins: u64,
}

/// The status of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The program version.
    #[serde(deserialize_with = "bounds::text")]
    pub program: String,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Files offered, complete or partial.
    pub files: u64,
    /// Content bytes sent since the start.
    pub sent_bytes: u64,
    /// `piece` and `files` requests in progress.
    pub active_requests: u64,
}
