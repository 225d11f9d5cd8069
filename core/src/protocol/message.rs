//! All requests and replies.
//!
//! Unknown fields are ignored, so that a field can be added; a new meaning gets a new kind.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::endpoint::Endpoint;
use crate::model::id::FileId;
use crate::model::identity::{PublicKey, Signature};
use crate::model::name::Name;
use crate::model::record::{FileKind, FileRecord, Offer, Provider};
use crate::swarm::invitation::Secret;
use crate::swarm::membership::SignedMembership;
use crate::transport::envelope::RequestId;

/// The most offers or ids in one `announce` or `withdraw`.
pub const MAX_OFFERS: usize = 800;
/// The most files in one page of a `list`.
pub const MAX_LIST: usize = 1000;
/// The most endpoints that a peer may have.
pub const MAX_ENDPOINTS: usize = 8;
/// The most providers in one reply to `providers`.
pub const MAX_PROVIDERS: usize = 100;
/// The most ids in one `cancel`.
pub const MAX_CANCEL: usize = 1000;
/// The most ids in one `files`.
pub const MAX_FILES: usize = 512;
/// The longest pattern or query in bytes.
pub const MAX_QUERY: usize = 300;

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(#[serde(with = "serde_bytes")] pub [u8; $len]);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({}..)", stringify!($name), hex::encode(&self.0[..4]))
            }
        }
    };
}

token! {
    /// A peer's session with a catalogue, given by `hello`.
    SessionId, 16
}
token! {
    /// The random id of a tracker database, the same for all trackers on it.
    CatalogueId, 16
}
token! {
    /// What a tracker wants signed.
    Nonce, 32
}

/// Proof that a peer has its key, the second step of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloProof {
    /// The peer's public key.
    pub key: PublicKey,
    /// The nonce of the reply to the first step, on the same connection.
    pub nonce: Nonce,
    /// The signature of [`HelloProof::signed_bytes`].
    pub signature: Signature,
    /// Where the peer can be reached. A host that means every address (`0.0.0.0`, `::`) stands for the address
    /// that the tracker sees. Empty for a peer that offers nothing.
    pub endpoints: Vec<Endpoint>,
}

impl HelloProof {
    /// What the peer signs: the text `enjambre hello 1`, the catalogue id, the nonce, and the BLAKE3 hash of the
    /// endpoints' texts, each ended by a line feed.
    pub fn signed_bytes(catalogue: CatalogueId, nonce: Nonce, endpoints: &[Endpoint]) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        for endpoint in endpoints {
            hasher.update(endpoint.to_string().as_bytes()).update(b"\n");
        }
        [&b"enjambre hello 1"[..], &catalogue.0, &nonce.0, hasher.finalize().as_bytes()].concat()
    }
}

/// A request to a tracker or a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// To a tracker: begins a session. Without `proof` it asks for a nonce, with it for the session. A newer
    /// session of a peer voids the older ones. Answered by [`Reply::Hello`].
    Hello {
        /// Absent in the first step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<HelloProof>,
    },
    /// To a tracker: puts a file under a name into the catalogue and the sender among its providers. Answered by
    /// [`Reply::Published`] when it is durable.
    Publish {
        /// The sender's session.
        session: SessionId,
        /// The name.
        name: Name,
        /// The file that the sender has in whole.
        id: FileId,
        /// Its size in bytes.
        size: u64,
        /// What it is.
        kind: FileKind,
    },
    /// To a tracker: the sender offers these files, at most [`MAX_OFFERS`]. Answered by [`Reply::Announced`].
    Announce {
        /// The sender's session.
        session: SessionId,
        /// What it offers.
        offers: Vec<Offer>,
    },
    /// To a tracker: the sender no longer offers these files, at most [`MAX_OFFERS`]. Answered by [`Reply::Done`].
    Withdraw {
        /// The sender's session.
        session: SessionId,
        /// The files.
        ids: Vec<FileId>,
    },
    /// To a tracker: the sender lives for one more lease. Answered by [`Reply::Done`], or by [`Reply::Renewed`] where the
    /// sender says what it knows of its swarm and that is one by invitation; `unauthorized` asks for a new `hello` and a new
    /// announcement of everything.
    Renew {
        /// The sender's session.
        session: SessionId,
        /// What it knows of its swarm.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        known: Option<KnownSwarm>,
    },
    /// To a tracker: the sender goes away for now. Answered by [`Reply::Done`].
    Leave {
        /// The sender's session.
        session: SessionId,
    },
    /// To a tracker: keep a copy of this file. Asked again, it tells how far that is. Answered by [`Reply::Pin`].
    Pin {
        /// The sender's session.
        session: SessionId,
        /// A file of the catalogue.
        id: FileId,
    },
    /// To a tracker: the copy of this file is no longer needed. Answered by [`Reply::Done`].
    Unpin {
        /// The sender's session.
        session: SessionId,
        /// The file.
        id: FileId,
    },
    /// To a tracker of a swarm by invitation: the sender, whose connection is authenticated, wants to come in. Answered by
    /// [`Reply::Joined`].
    Join {
        /// The secret of the invitation.
        secret: Secret,
    },
    /// To a peer of a swarm by invitation: the sender is a member. Answered by [`Reply::Introduced`].
    Introduce {
        /// What says so.
        membership: SignedMembership,
    },
    /// To a tracker: the newest file of a name, or the file of an id or a prefix of one. Answered by
    /// [`Reply::Find`].
    Find {
        /// A name, 64 hexadecimal digits, or the first 8 or more of them.
        query: String,
    },
    /// To a tracker: who offers this file now. Answered by [`Reply::Providers`].
    Providers {
        /// The file.
        id: FileId,
    },
    /// To a tracker: a page of the catalogue. Answered by [`Reply::List`].
    List {
        /// Which names: all that contain the text; with `*` or `?` in it, all that match as a whole. Empty: all.
        #[serde(default)]
        pattern: String,
        /// Where the last page ended.
        #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
        cursor: Option<Vec<u8>>,
        /// The most files wanted, at most [`MAX_LIST`].
        limit: u32,
    },
    /// To either: what it is and how it does. Answered by [`Reply::TrackerStatus`] or [`Reply::PeerStatus`].
    Status,
    /// To a peer: the piece hashes of a file from `first` on. Answered by [`Reply::Manifest`].
    Manifest {
        /// The file.
        id: FileId,
        /// The first piece whose hash is wanted.
        first: u32,
    },
    /// To a peer: which pieces of a file it has. Answered by [`Reply::Have`].
    Have {
        /// The file.
        id: FileId,
        /// Where this is set, the answer may wait until what the peer has is something else.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait: Option<HaveWait>,
    },
    /// To a peer: the content of one piece. Answered by [`Reply::Piece`], or by [`Reply::Elsewhere`] where it was
    /// asked sparingly.
    Piece {
        /// The file.
        id: FileId,
        /// The number of the piece.
        index: u32,
        /// The piece is wanted only if it was not given to anybody else yet.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        sparing: bool,
    },
    /// To a peer: the content of small files, each of one piece or none, at most [`MAX_FILES`]. Answered by
    /// [`Reply::Files`].
    Files {
        /// The files.
        ids: Vec<FileId>,
    },
    /// To a peer: these requests on the same connection need no answer any more; those not yet begun are
    /// answered with `busy` and no payload. Answered by [`Reply::Done`].
    Cancel {
        /// Request ids, at most [`MAX_CANCEL`].
        ids: Vec<RequestId>,
    },
}

/// What a peer knows of its swarm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownSwarm {
    /// Up to which version it has all revocations; 0 for none.
    pub revocations: u64,
    /// When its own membership ends, in milliseconds since 1970-01-01 UTC; 0 where it has none.
    pub until: u64,
}

/// For how long an answer to `have` may wait for something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveWait {
    /// How many pieces the asker knows of.
    pub known: u32,
    /// The longest wait in milliseconds.
    pub millis: u64,
}

/// The answer to a request. Which reply carries a payload is said with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// To `hello`.
    Hello {
        /// Which catalogue this is.
        catalogue: CatalogueId,
        /// To be signed in the second step.
        nonce: Nonce,
        /// The session, after the second step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        welcome: Option<Welcome>,
    },
    /// To `publish`.
    Published {
        /// The version of the name that the file is.
        version: u64,
        /// False where it was the newest already and nothing was changed.
        new: bool,
    },
    /// To `announce`.
    Announced {
        /// The ids that the catalogue does not have; they were left out.
        unknown: Vec<FileId>,
    },
    /// To requests that ask for nothing.
    Done,
    /// To `renew` in a swarm by invitation: what is news to the sender.
    Renewed {
        /// Its next membership, long before the one that it has ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        membership: Option<SignedMembership>,
        /// The next signed page of revocations, see [`crate::swarm::revocations::RevocationPage::verify`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revocations: Option<Bytes>,
        /// Whether there is another page behind it: the sender need not wait to ask for that.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// To `join`.
    Joined {
        /// The sender's membership.
        membership: SignedMembership,
    },
    /// To `introduce`.
    Introduced {
        /// The membership of who answers; none where it has none that did not end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        membership: Option<SignedMembership>,
    },
    /// To `pin`.
    Pin {
        /// How many bytes of the file the tracker has.
        have: u64,
        /// Whether it has the whole file, durably.
        held: bool,
    },
    /// To `find`.
    Find {
        /// The file.
        file: FileRecord,
    },
    /// To `providers`.
    Providers {
        /// Living peers, in random order, at most [`MAX_PROVIDERS`].
        providers: Vec<Provider>,
    },
    /// To `list`.
    List {
        /// Files in the order of their names, the newest version of a name first. May be empty before the end.
        files: Vec<FileRecord>,
        /// Where the next page begins; none at the end.
        #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
        cursor: Option<Vec<u8>>,
    },
    /// To `status` from a tracker.
    TrackerStatus(TrackerStatus),
    /// To `status` from a peer.
    PeerStatus(PeerStatus),
    /// To `manifest`. The payload is the hashes of the pieces from `first` on, 32 bytes each; as many as fit.
    Manifest {
        /// The size of the file in bytes, as the peer claims.
        size: u64,
    },
    /// To `have`. The payload is the bitmap; empty where the peer has all.
    Have {
        /// The size of the file in bytes, as the peer claims.
        size: u64,
        /// Whether the peer has the whole file.
        complete: bool,
    },
    /// To `piece`. The payload is the content.
    Piece,
    /// To `piece` that was asked sparingly: it was given to somebody else. The payload is the bitmap of the pieces that were.
    Elsewhere,
    /// To `files`. The payload is the content of those that are here, one after the other.
    Files {
        /// The size of each file in the order of the request; none for one that is not here, or has several
        /// pieces. As many from the front as fit: the others are to be asked for again.
        sizes: Vec<Option<u64>>,
    },
}

/// A new session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The session, to be sent with everything that is done in the peer's name.
    pub session: SessionId,
    /// How long the peer counts as alive after a renewal, in milliseconds. Renew three times in that time.
    pub lease_ms: u64,
    /// The endpoints that others are told.
    pub endpoints: Vec<Endpoint>,
    /// In a swarm by invitation: the peer's membership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<SignedMembership>,
}

/// How a tracker does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// The version of the program.
    pub program: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Versions of names in the catalogue.
    pub files: u64,
    /// Peers that are alive.
    pub peers: u64,
    /// Whether it keeps copies on request, and how many bytes it has room for.
    pub store: Option<StoreStatus>,
}

/// How the copies do that a tracker keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes that may be kept.
    pub quota: u64,
    /// Bytes that are promised to pinned files.
    pub reserved: u64,
    /// Pinned files.
    pub pins: u64,
}

/// How a peer does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The version of the program.
    pub program: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Files that it offers, complete or in part.
    pub files: u64,
    /// Bytes of content sent since the start.
    pub sent: u64,
    /// Piece requests that it serves at the moment.
    pub serving: u64,
}
