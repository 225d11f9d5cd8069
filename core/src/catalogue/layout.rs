//! How the catalogue lies in a storage: spaces, keys and records.
//!
//! Numbers in keys are big-endian, ids are their 32 bytes. A name has no control characters, so the byte 0 ends it
//! and keys sort by the bytes of the name. Versions are stored inverted (`!version`), so the newest comes first.
//! Files and peers have a number each, in 6 bytes and never used again, so that what there are most of, the claims,
//! is small and lies together. A record is a CBOR map (RFC 8949) with short text keys and its version under `v`;
//! unknown entries are ignored.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | `meta` | `format` | CBOR map: `v` the format version, `what` = `"catalogue"` |
//! | `meta` | `catalogue` | the catalogue id, 16 random bytes |
//! | `meta` | `stamp` | u64: when a tracker last wrote renewals, ms since 1970; while it gives grace, that of the grace |
//! | `meta` | `numbers` | u64: the first number that no tracker has taken for files and peers |
//! | `meta` | `swept`, `forgot` | u64: when a tracker last began to look after all peers, or all files, ms since 1970 |
//! | `meta` | `reserved` | [`ReservedRecord`]: bytes and number of pins |
//! | `versions` | name, 0, u64 `!version` | [`VersionRecord`] |
//! | `files` | file id | [`FileEntry`]: the latest publication of the file |
//! | `file_names` | file id, name, 0, u64 `!version` | one byte 0: the file is this version |
//! | `providers` | number of the file, number of the peer | [`Claim`] |
//! | `offers` | number of the peer, number of the file | 6 bytes of when the session began, then [`Claim`] |
//! | `cleared` | number of the peer | 8 random bytes, others each time claims of the peer are taken away |
//! | `peers` | peer id | number of the peer |
//! | `leases` | number of the peer | [`LeaseRecord`] |
//! | `sessions` | session id, 16 bytes | number of the peer |
//! | `pins` | file id | [`PinRecord`] |
//! | `meta` | `revocations` | u64: the version of the list of revocations |
//! | `authority` | `key` | the secret of the swarm's authority, 32 bytes of an Ed25519 seed |
//! | `invitations` | hash of the secret, 32 bytes | [`InvitationRecord`] |
//! | `members` | peer id | [`MemberRecord`] |
//! | `revoked` | peer id | u64: the version of the list with which a member was thrown out, while it may have a membership that did not end |
//! | `reservations` | name | [`ReservationRecord`] |

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::endpoint::Endpoint;
use crate::model::id::{FileId, PeerId};
use crate::model::name::Name;
use crate::model::record::FileKind;
use crate::protocol::message::SessionId;
use crate::storage::error::StorageError;
use crate::storage::value::{Key, Space};
use crate::swarm::invitation::SecretHash;
use crate::swarm::membership::Rights;

/// The newest format that this program reads, and the one that it writes.
pub const FORMAT: u64 = 2;
/// The version of every record that this program writes.
pub const RECORD: u8 = 1;

/// Facts about the database itself.
pub const META: Space = Space::new("meta");
/// Versions of names.
pub const VERSIONS: Space = Space::new("versions");
/// Files by their id.
pub const FILES: Space = Space::new("files");
/// The versions of names that a file is.
pub const FILE_NAMES: Space = Space::new("file_names");
/// Who claims to have a file.
pub const PROVIDERS: Space = Space::new("providers");
/// What a peer claims to have.
pub const OFFERS: Space = Space::new("offers");
/// Changes whenever claims of a peer are taken away.
pub const CLEARED: Space = Space::new("cleared");
/// The number of a peer.
pub const PEERS: Space = Space::new("peers");
/// Peers and how long they live.
pub const LEASES: Space = Space::new("leases");
/// Whose a session is.
pub const SESSIONS: Space = Space::new("sessions");
/// Files of which the tracker keeps a copy.
pub const PINS: Space = Space::new("pins");
/// The key of the swarm.
pub const AUTHORITY: Space = Space::new("authority");
/// Who may come in.
pub const INVITATIONS: Space = Space::new("invitations");
/// Who came in by invitation.
pub const MEMBERS: Space = Space::new("members");
/// Who was thrown out of late.
pub const REVOKED: Space = Space::new("revoked");
/// Names that only one peer may publish.
pub const RESERVATIONS: Space = Space::new("reservations");

/// Every space of a catalogue.
pub const SPACES: &[Space] = &[
    META,
    VERSIONS,
    FILES,
    FILE_NAMES,
    PROVIDERS,
    OFFERS,
    CLEARED,
    PEERS,
    LEASES,
    SESSIONS,
    PINS,
    AUTHORITY,
    INVITATIONS,
    MEMBERS,
    REVOKED,
    RESERVATIONS,
];

/// The value of an entry whose key says all.
pub const MARK: Bytes = Bytes::from_static(&[0]);

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            fn bytes(self) -> [u8; 6] {
                six_bytes(self.0)
            }
        }
    };
}

number_type! {
    /// Names a file in this catalogue, in few bytes.
    FileNumber
}
number_type! {
    /// Names a peer in this catalogue, in few bytes.
    PeerNumber
}

/// The largest number of a file or peer.
pub const MAX_NUMBER: u64 = (1 << 48) - 1;

/// The record under `format`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatRecord {
    /// The format version.
    pub v: u64,
    /// What the database holds: `catalogue`.
    pub what: String,
    /// While it is brought forward from this format: how far that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Bytes>,
}

/// One version of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// The version of the record.
    pub v: u8,
    /// The file.
    pub id: FileId,
    /// Its size in bytes, as the publisher claims.
    pub size: u64,
    /// What it is.
    pub kind: FileKind,
    /// When it was published, in ms since 1970.
    pub at: u64,
    /// Who published it.
    pub by: PeerId,
    /// The number of the file.
    pub no: FileNumber,
}

/// A file and the version of a name that it was last published as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The version of the record.
    pub v: u8,
    /// The name of the latest publication.
    pub name: Name,
    /// The version of that name.
    pub version: u64,
    /// The size in bytes, as its publisher claims.
    pub size: u64,
    /// What it is.
    pub kind: FileKind,
    /// When it was published, in ms since 1970.
    pub at: u64,
    /// Who published it.
    pub by: PeerId,
    /// The number of the file.
    pub no: FileNumber,
    /// Since when no living provider was seen, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<u64>,
}

/// A peer's claim to have a file: a byte that is 1 where the peer has the whole file and else 0, then the size in
/// as few bytes as it takes, the largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The size in bytes that the peer claims the file has.
    pub size: u64,
    /// Whether it has the whole file.
    pub complete: bool,
}

impl Claim {
    /// Writes the value in `providers`.
    pub(super) fn write(self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self.complete));
        let size = self.size.to_be_bytes();
        bytes.extend_from_slice(&size[self.size.leading_zeros() as usize / 8..]);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (flags, size) = bytes.split_first()?;
        if *flags > 1 || size.len() > 8 {
            return None;
        }
        let size = size.iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
        Some(Self { size, complete: *flags == 1 })
    }

    /// The value in `providers`.
    pub fn encode(self) -> Bytes {
        let mut bytes = Vec::with_capacity(9);
        self.write(&mut bytes);
        bytes.into()
    }

    /// Reads a value of `providers`.
    pub fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        Self::read(bytes).ok_or_else(|| damaged(PROVIDERS, bytes))
    }

    /// The value in `offers`.
    pub fn encode_offer(self, hello: u64) -> Bytes {
        let mut bytes = Vec::with_capacity(15);
        self.write_offer(hello, &mut bytes);
        bytes.into()
    }

    /// Writes the value in `offers`.
    pub(super) fn write_offer(self, hello: u64, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&six_bytes(hello));
        self.write(bytes);
    }

    /// Whether this is the value in `offers`.
    pub(super) fn is_offer(self, hello: u64, bytes: &[u8]) -> bool {
        bytes.strip_prefix(&six_bytes(hello)).and_then(Self::read) == Some(self)
    }

    /// Reads a value of `offers`: the claim, and when the session began in which it was made.
    pub fn decode_offer(bytes: &[u8]) -> Result<(Self, u64), StorageError> {
        let read = || {
            let (hello, claim) = bytes.split_first_chunk::<6>()?;
            Some((Self::read(claim)?, from_six_bytes(hello)))
        };
        read().ok_or_else(|| damaged(OFFERS, bytes))
    }
}

/// A peer and how long it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The version of the record.
    pub v: u8,
    /// Whose it is.
    pub id: PeerId,
    /// The peer's newest session; all others are void.
    pub session: SessionId,
    /// When that session began, in ms since 1970; another for each session of the peer.
    pub hello: u64,
    /// The last renewal that was written down, in ms since 1970.
    pub renewed: u64,
    /// Where the peer can be reached.
    pub endpoints: Vec<Endpoint>,
    /// Whether the peer said that it goes away.
    #[serde(default)]
    pub left: bool,
    /// Whether claims of former sessions were cleared away.
    #[serde(default)]
    pub settled: bool,
}

/// A file of which the tracker keeps a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRecord {
    /// The version of the record.
    pub v: u8,
    /// The bytes reserved for it.
    pub size: u64,
    /// Whether the tracker has the whole file, durably.
    pub held: bool,
    /// When it was asked for, in ms since 1970.
    pub at: u64,
    /// Who asked for it.
    pub by: PeerId,
}

/// What lets somebody in, known by the hash of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationRecord {
    /// The version of the record.
    pub v: u8,
    /// What those may do who come in by it.
    pub rights: Rights,
    /// How many more may come in.
    pub uses: u32,
    /// Until when, in ms since 1970.
    pub until: u64,
    /// When it was made, in ms since 1970.
    pub at: u64,
}

/// Somebody who came in by invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The version of the record.
    pub v: u8,
    /// What it may do.
    pub rights: Rights,
    /// When it came in, in ms since 1970.
    pub joined: u64,
    /// When it was thrown out, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
    /// What it came by: the hash of the secret of its invitation, and of a later one that let it do more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invitations: Vec<SecretHash>,
}

/// A name that only one peer may publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationRecord {
    /// The version of the record.
    pub v: u8,
    /// Who may publish it.
    pub by: PeerId,
    /// Since when, in ms since 1970.
    pub at: u64,
}

/// What is promised to pins altogether.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedRecord {
    /// The version of the record.
    pub v: u8,
    /// Bytes.
    pub bytes: u64,
    /// Number of pins.
    pub pins: u64,
}

fn key(parts: &[&[u8]]) -> Key {
    Key::new(parts.concat()).expect("a name has at most 255 bytes, so every key has 1 to 1024")
}

/// A key of the space `meta`.
pub fn meta_key(name: &'static str) -> Key {
    key(&[name.as_bytes()])
}

/// What all versions of a name begin with.
pub fn versions_prefix(name: &Name) -> Vec<u8> {
    [name.as_str().as_bytes(), &[0]].concat()
}

/// The key of a version in `versions`.
pub fn version_key(name: &Name, version: u64) -> Key {
    key(&[name.as_str().as_bytes(), &[0], &(!version).to_be_bytes()])
}

/// Reads a key of `versions`.
pub fn read_version_key(bytes: &[u8]) -> Result<(Name, u64), StorageError> {
    let read = || {
        let (rest, version) = bytes.split_last_chunk::<8>()?;
        let (&0, name) = rest.split_last()? else { return None };
        let name = std::str::from_utf8(name).ok()?.parse().ok()?;
        Some((name, !u64::from_be_bytes(*version)))
    };
    read().ok_or_else(|| damaged(VERSIONS, bytes))
}

/// The key of a file in `files` and `pins`.
pub fn file_key(id: &FileId) -> Key {
    key(&[id.as_bytes()])
}

/// Reads a key of `files` or `pins`.
pub fn read_file_key(space: Space, bytes: &[u8]) -> Result<FileId, StorageError> {
    FileId::try_from(bytes).map_err(|_| damaged(space, bytes))
}

/// The key in `file_names` of a version that a file is.
pub fn file_name_key(id: &FileId, name: &Name, version: u64) -> Key {
    key(&[id.as_bytes(), version_key(name, version).as_bytes()])
}

/// The part of a key of `file_names` that is the key in `versions`.
pub fn version_key_of_file_name(bytes: &[u8]) -> Result<Key, StorageError> {
    let rest = bytes.get(32..).ok_or_else(|| damaged(FILE_NAMES, bytes))?;
    read_version_key(rest).map_err(|_| damaged(FILE_NAMES, bytes))?;
    Ok(key(&[rest]))
}

fn six_bytes(number: u64) -> [u8; 6] {
    let [_, _, bytes @ ..] = number.min(MAX_NUMBER).to_be_bytes();
    bytes
}

fn from_six_bytes(bytes: &[u8; 6]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn pair(first: [u8; 6], second: [u8; 6]) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&first);
    bytes[6..].copy_from_slice(&second);
    bytes
}

/// A key of these bytes, of which there are 12.
pub(super) fn key_of(bytes: Bytes) -> Key {
    Key::new(bytes).expect("every key has 1 to 1024 bytes")
}

/// What all claims to have a file begin with, in `providers`.
pub fn providers_prefix(file: FileNumber) -> [u8; 6] {
    file.bytes()
}

/// The key of a claim in `providers`.
pub fn provider_key(file: FileNumber, peer: PeerNumber) -> Key {
    key(&[&provider_key_bytes(file, peer)])
}

pub(super) fn provider_key_bytes(file: FileNumber, peer: PeerNumber) -> [u8; 12] {
    pair(file.bytes(), peer.bytes())
}

/// The peer of a key of `providers`.
pub fn read_provider_key(bytes: &[u8]) -> Result<PeerNumber, StorageError> {
    second(bytes).map(PeerNumber).ok_or_else(|| damaged(PROVIDERS, bytes))
}

/// What all claims of a peer begin with, in `offers`.
pub fn offers_prefix(peer: PeerNumber) -> [u8; 6] {
    peer.bytes()
}

/// The key of a claim in `offers`.
pub fn offer_key(peer: PeerNumber, file: FileNumber) -> Key {
    key(&[&offer_key_bytes(peer, file)])
}

pub(super) fn offer_key_bytes(peer: PeerNumber, file: FileNumber) -> [u8; 12] {
    pair(peer.bytes(), file.bytes())
}

/// The file of a key of `offers`.
pub fn read_offer_key(bytes: &[u8]) -> Result<FileNumber, StorageError> {
    second(bytes).map(FileNumber).ok_or_else(|| damaged(OFFERS, bytes))
}

fn second(bytes: &[u8]) -> Option<u64> {
    let (_, second) = bytes.split_first_chunk::<6>()?;
    second.try_into().ok().map(from_six_bytes)
}

/// The key of a peer in `leases` and `cleared`.
pub fn peer_key(peer: PeerNumber) -> Key {
    key(&[&peer.bytes()])
}

/// The key of an invitation.
pub fn invitation_key(secret: SecretHash) -> Key {
    key(&[&secret.0])
}

/// Reads the key of an invitation.
pub fn read_invitation_key(bytes: &[u8]) -> Result<SecretHash, StorageError> {
    bytes.try_into().map(SecretHash).map_err(|_| damaged(INVITATIONS, bytes))
}

/// The key of the authority's secret.
pub fn authority_key() -> Key {
    key(&[b"key"])
}

/// The key of a name in `reservations`.
pub fn reservation_key(name: &Name) -> Key {
    key(&[name.as_str().as_bytes()])
}

/// Reads a key of `members` or `revoked`.
pub fn read_peer_id(space: Space, bytes: &[u8]) -> Result<PeerId, StorageError> {
    PeerId::try_from(bytes).map_err(|_| damaged(space, bytes))
}

/// The key of a peer in `peers`, `members` and `revoked`.
pub fn peer_id_key(peer: &PeerId) -> Key {
    key(&[peer.as_bytes()])
}

/// The number of a peer as a value.
pub fn peer_number(peer: PeerNumber) -> Bytes {
    Bytes::copy_from_slice(&peer.bytes())
}

/// Reads a key of `leases`, or a value of `sessions` or `peers`.
pub fn read_peer(space: Space, bytes: &[u8]) -> Result<PeerNumber, StorageError> {
    bytes.try_into().map(|bytes| PeerNumber(from_six_bytes(bytes))).map_err(|_| damaged(space, bytes))
}

/// The key of a session in `sessions`.
pub fn session_key(session: SessionId) -> Key {
    key(&[&session.0])
}

/// A number as a value.
pub fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

/// Reads what [`number`] made.
pub fn read_number(space: Space, bytes: &[u8]) -> Result<u64, StorageError> {
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| damaged(space, bytes))?))
}

/// A record as a value.
pub fn encode(record: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    ciborium::into_writer(record, &mut bytes).expect("plain values are written to memory without fail");
    bytes.into()
}

/// Reads a record of this space.
pub fn decode<T: DeserializeOwned>(space: Space, bytes: &[u8]) -> Result<T, StorageError> {
    let mut rest = bytes;
    let record = ciborium::de::from_reader_with_recursion_limit(&mut rest, 16).map_err(|error| {
        let what = format!("a record in the space {} cannot be read", space.name());
        StorageError::Corrupt { what, source: Some(error.to_string().into()) }
    })?;
    if rest.is_empty() { Ok(record) } else { Err(damaged(space, bytes)) }
}

/// The error for an entry that this program would not have written.
pub fn damaged(space: Space, bytes: &[u8]) -> StorageError {
    let shown = bytes[..bytes.len().min(40)].escape_ascii();
    StorageError::corrupt(format!("the entry {shown} in the space {} is not well formed", space.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_sort_by_name_and_the_newest_comes_first(
            a in "[a-zæ日 .]{1,8}", b in "[a-zæ日 .]{1,8}", x in any::<u64>(), y in any::<u64>(),
        ) {
            let (Ok(a), Ok(b)) = (a.parse::<Name>(), b.parse::<Name>()) else { return Ok(()) };
            let (first, second) = (version_key(&a, x), version_key(&b, y));
            prop_assert_eq!(first.cmp(&second), a.cmp(&b).then(y.cmp(&x)));
            prop_assert_eq!(read_version_key(first.as_bytes()).unwrap(), (a, x));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read_version_key(&bytes);
            let _ = version_key_of_file_name(&bytes);
            let _ = read_provider_key(&bytes);
            let _ = read_offer_key(&bytes);
            let _ = Claim::decode(&bytes);
            let _ = Claim::decode_offer(&bytes);
            let _ = decode::<LeaseRecord>(LEASES, &bytes);
            let _ = decode::<FileEntry>(FILES, &bytes);
        }
    }

    proptest! {
        #[test]
        fn a_claim_is_read_back_and_claims_sort_by_both_numbers(
            size in any::<u64>(), complete in any::<bool>(), hello in 0..=MAX_NUMBER,
            a in (0..=MAX_NUMBER, 0..=MAX_NUMBER), b in (0..=MAX_NUMBER, 0..=MAX_NUMBER),
        ) {
            let claim = Claim { size, complete };
            prop_assert_eq!(Claim::decode(&claim.encode()).unwrap(), claim);
            prop_assert_eq!(Claim::decode_offer(&claim.encode_offer(hello)).unwrap(), (claim, hello));
            let key = |(file, peer): (u64, u64)| provider_key(FileNumber(file), PeerNumber(peer));
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            prop_assert_eq!(read_provider_key(key(a).as_bytes()).unwrap(), PeerNumber(a.1));
            let offer = offer_key(PeerNumber(a.0), FileNumber(a.1));
            prop_assert_eq!(read_offer_key(offer.as_bytes()).unwrap(), FileNumber(a.1));
        }
    }

    #[test]
    fn the_longest_name_fits_a_key() {
        let name: Name = "x".repeat(255).parse().unwrap();
        assert_eq!(file_name_key(&FileId::from_bytes([1; 32]), &name, 1).as_bytes().len(), 32 + 255 + 1 + 8);
    }
}
