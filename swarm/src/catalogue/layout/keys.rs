//! The keys of a catalogue.

use std::ops::Bound;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use enjambre_core::model::secret::SecretHash;
use enjambre_core::{FileId, Key, KeyRange, Name, PeerId, SessionId, Space, StorageError};

use super::codec::{damaged, from_six_bytes, six_bytes};
use super::spaces::{FILE_NAMES, INVITATIONS, OFFERS, PINS, PROVIDERS, VERSIONS};

/// The short id of a file within one catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileNumber(pub u64);

/// The short id of a peer within one catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerNumber(pub u64);

/// A pin: a peer, and the file that it pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinId {
    /// The peer.
    pub by: PeerId,
    /// The file.
    pub file: FileId,
}

fn key(parts: &[&[u8]]) -> Key {
    Key::new(parts.concat()).expect("a name has at most 255 bytes, so every key has 1 to 1024")
}

/// A key of the space `meta`.
pub fn meta_key(name: &'static str) -> Key {
    key(&[name.as_bytes()])
}

/// The prefix of all versions of a name in `versions`.
pub fn versions_prefix(name: &Name) -> Vec<u8> {
    [name.as_str().as_bytes(), &[0]].concat()
}

/// The key of a version in `versions`.
pub fn version_key(name: &Name, version: u64) -> Key {
    key(&[name.as_str().as_bytes(), &[0], &(!version).to_be_bytes()])
}

/// Decodes a key of `versions`.
pub fn read_version_key(bytes: &[u8]) -> Result<(Name, u64), StorageError> {
    let read = || {
        let (rest, version) = bytes.split_last_chunk::<8>()?;
        let (&0, name) = rest.split_last()? else { return None };
        let name = std::str::from_utf8(name).ok()?.parse().ok()?;
        Some((name, !u64::from_be_bytes(*version)))
    };
    read().ok_or_else(|| damaged(VERSIONS, bytes))
}

/// The key of a file in `files` and `pinned`.
pub fn file_key(id: &FileId) -> Key {
    key(&[id.as_bytes()])
}

/// Decodes a key of `files` or `pinned`.
pub fn read_file_key(space: Space, bytes: &[u8]) -> Result<FileId, StorageError> {
    FileId::try_from(bytes).map_err(|_| damaged(space, bytes))
}

/// The key of a pin in `pins`. Its prefix is the id of the peer.
pub fn pin_key(pin: &PinId) -> Key {
    key(&[pin.by.as_bytes(), pin.file.as_bytes()])
}

/// Decodes a key of `pins`.
pub fn read_pin_key(bytes: &[u8]) -> Result<PinId, StorageError> {
    let read = || {
        let (by, file) = bytes.split_first_chunk::<32>()?;
        Some(PinId { by: PeerId::from_bytes(*by), file: FileId::try_from(file).ok()? })
    };
    read().ok_or_else(|| damaged(PINS, bytes))
}

/// The key in `file_names` of a version that a file is.
pub fn file_name_key(id: &FileId, name: &Name, version: u64) -> Key {
    key(&[id.as_bytes(), version_key(name, version).as_bytes()])
}

/// The prefix of all keys in `file_names` of versions of a name that a file is.
pub fn file_name_prefix(id: &FileId, name: &Name) -> Vec<u8> {
    [id.as_bytes(), &versions_prefix(name)[..]].concat()
}

/// The part of a key of `file_names` that is the key in `versions`.
pub fn version_key_of_file_name(bytes: &[u8]) -> Result<Key, StorageError> {
    let rest = bytes.get(32..).ok_or_else(|| damaged(FILE_NAMES, bytes))?;
    read_version_key(rest).map_err(|_| damaged(FILE_NAMES, bytes))?;
    Ok(key(&[rest]))
}

fn pair(first: u64, second: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&six_bytes(first));
    bytes[6..].copy_from_slice(&six_bytes(second));
    bytes
}

/// Makes a key of the 12 bytes of [`provider_key_bytes`] or [`offer_key_bytes`].
pub(crate) fn key_of(bytes: Bytes) -> Key {
    Key::new(bytes).expect("every key has 1 to 1024 bytes")
}

/// The prefix of all claims to a file in `providers`.
pub fn providers_prefix(file: FileNumber) -> [u8; 6] {
    six_bytes(file.0)
}

/// The key of a claim in `providers`.
pub fn provider_key(file: FileNumber, peer: PeerNumber) -> Key {
    key(&[&provider_key_bytes(file, peer)])
}

pub(crate) fn provider_key_bytes(file: FileNumber, peer: PeerNumber) -> [u8; 12] {
    pair(file.0, peer.0)
}

/// Decodes the peer of a key of `providers`.
pub fn read_provider_key(bytes: &[u8]) -> Result<PeerNumber, StorageError> {
    second(bytes).map(PeerNumber).ok_or_else(|| damaged(PROVIDERS, bytes))
}

/// The prefix of all claims of a peer in `offers`.
pub fn offers_prefix(peer: PeerNumber) -> [u8; 6] {
    six_bytes(peer.0)
}

/// The key of a claim in `offers`.
pub fn offer_key(peer: PeerNumber, file: FileNumber) -> Key {
    key(&[&offer_key_bytes(peer, file)])
}

pub(crate) fn offer_key_bytes(peer: PeerNumber, file: FileNumber) -> [u8; 12] {
    pair(peer.0, file.0)
}

/// Decodes the file of a key of `offers`.
pub fn read_offer_key(bytes: &[u8]) -> Result<FileNumber, StorageError> {
    second(bytes).map(FileNumber).ok_or_else(|| damaged(OFFERS, bytes))
}

fn second(bytes: &[u8]) -> Option<u64> {
    let (_, second) = bytes.split_first_chunk::<6>()?;
    second.try_into().ok().map(from_six_bytes)
}

/// The key of a peer in `leases` and `cleared`.
pub fn peer_key(peer: PeerNumber) -> Key {
    key(&[&six_bytes(peer.0)])
}

/// The number of a peer as a value.
pub fn peer_number(peer: PeerNumber) -> Bytes {
    Bytes::copy_from_slice(&six_bytes(peer.0))
}

/// Decodes a key of `leases`, or a value of `sessions` or `peers`.
pub fn read_peer(space: Space, bytes: &[u8]) -> Result<PeerNumber, StorageError> {
    bytes.try_into().map(|bytes| PeerNumber(from_six_bytes(bytes))).map_err(|_| damaged(space, bytes))
}

/// The key of a peer in `peers`, `pinners`, `members` and `revoked`.
pub fn peer_id_key(peer: &PeerId) -> Key {
    key(&[peer.as_bytes()])
}

/// Decodes a key of `members` or `revoked`.
pub fn read_peer_id(space: Space, bytes: &[u8]) -> Result<PeerId, StorageError> {
    PeerId::try_from(bytes).map_err(|_| damaged(space, bytes))
}

/// The key of a session in `sessions`.
pub fn session_key(session: SessionId) -> Key {
    key(&[&session.0])
}

/// The key of an invitation in `invitations`.
pub fn invitation_key(secret: SecretHash) -> Key {
    key(&[&secret.0])
}

/// Decodes a key of `invitations`.
pub fn read_invitation_key(bytes: &[u8]) -> Result<SecretHash, StorageError> {
    bytes.try_into().map(SecretHash).map_err(|_| damaged(INVITATIONS, bytes))
}

/// The key of the authority's secret in `authority`.
pub fn authority_key() -> Key {
    key(&[b"key"])
}

/// The key of a name in `reservations`.
pub fn reservation_key(name: &Name) -> Key {
    key(&[name.as_str().as_bytes()])
}

/// The range of all 32-byte ids that begin with these hexadecimal digits. Digits beyond the 64th are ignored.
pub(crate) fn id_range(digits: &str) -> KeyRange {
    let nibble = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0) as u8;
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    for (at, digit) in digits.bytes().take(64).enumerate() {
        let (shift, mask) = if at % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        low[at / 2] |= nibble(digit) << shift;
        high[at / 2] = (high[at / 2] & mask) | (nibble(digit) << shift);
    }
    KeyRange {
        start: Bound::Included(Bytes::copy_from_slice(&low)),
        end: Bound::Included(Bytes::copy_from_slice(&high)),
    }
}
