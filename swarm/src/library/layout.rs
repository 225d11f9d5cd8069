//! The spaces, keys and records of the index. A value has at most 32 KiB.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | `library_meta` | `format` | format version, 8 bytes big-endian |
//! | `library_files` | id | [`Record`] in CBOR |
//! | `library_hashes` | id, page (4 bytes) | up to 1024 piece hashes; none for files with at most one piece |
//! | `library_have` | id, page | bitmap of the synced pieces of an incomplete file |
//! | `library_dirty` | id, page | bitmap of pieces that may be written, but are not known to be synced |
//! | `library_members` | member, collection | 1 byte |
//! | `library_tombs` | id | tombstone: the [`Record`] of a file whose content is being deleted |
//! | `library_acks` | catalogue (16), id, name | the time at which the catalogue acknowledged the publication, in milliseconds since 1970 by its tracker, 0 if the catalogue may have lost it (8, big-endian), and the version (8, big-endian) |
//! | `library_downloads` | id | [`DownloadRecord`] in CBOR |
//! | `library_swarm` | `membership` | invite-only swarms: the newest membership of the node, as signed by a tracker |
//! | `library_swarm` | `revocations` | invite-only swarms: public key of the authority (32), version up to which all revocations are known (8) |
//! | `library_swarm` | `revoked`, peer id | invite-only swarms: version of the revocation (8) |
//!
//! Numbers in keys are big-endian, so the pages of a file are in order.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::entry::WithdrawReason;
use super::error::Result;
use super::linked::Fingerprint;
use enjambre_core::model::cbor;
use enjambre_core::model::manifest::PieceHash;
use enjambre_core::{
    Batch, Bitmap, CatalogueId, FileId, FileKind, Key, KeyRange, Name, PeerId, PieceIndex, PieceLayout,
    Space, StorageError, UnixMillis,
};

pub(super) const META: Space = Space::new("library_meta");
pub(super) const FILES: Space = Space::new("library_files");
pub(super) const HASHES: Space = Space::new("library_hashes");
pub(super) const HAVE: Space = Space::new("library_have");
pub(super) const DIRTY: Space = Space::new("library_dirty");
pub(super) const MEMBERS: Space = Space::new("library_members");
pub(super) const TOMBS: Space = Space::new("library_tombs");
pub(super) const ACKS: Space = Space::new("library_acks");
/// The download queue.
pub const DOWNLOADS: Space = Space::new("library_downloads");
/// The membership state of an invite-only swarm.
pub const SWARM: Space = Space::new("library_swarm");

/// All spaces of the index.
pub const SPACES: &[Space] = &[META, FILES, HASHES, HAVE, DIRTY, MEMBERS, TOMBS, ACKS, DOWNLOADS, SWARM];

/// The format version of the index.
pub const FORMAT: u64 = 1;
/// The number of hashes in one record, which has 32 KiB.
pub(super) const HASHES_PER_PAGE: usize = 1024;
/// The number of bytes of a bitmap in one record. Small, because a checkpoint writes whole records.
pub(super) const BITMAP_PAGE: usize = 1024;
/// The largest number of names of one file; beyond it the oldest is removed.
pub(super) const MAX_NAMES: usize = 32;
/// The largest number of further places of one file; beyond it the oldest is removed.
pub(super) const MAX_COPIES: usize = 32;

/// The key of an acknowledged publication: the catalogue, and the file and name that it acknowledged.
pub(super) type AckKey = (CatalogueId, FileId, Name);

/// The record of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) kind: FileKind,
    pub(super) published: bool,
    pub(super) place: ContentPlace,
    /// Other files of the user with the same content, for a file linked as a whole.
    pub(super) copies: Vec<ContentPlace>,
    pub(super) names: Vec<NameRecord>,
    pub(super) added_ms: UnixMillis,
    /// Whether every piece is stored and synced.
    pub(super) complete: bool,
    pub(super) withdrawn: Option<WithdrawReason>,
}

/// A name of a file. A higher number is newer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NameRecord {
    pub(super) name: Name,
    pub(super) number: u64,
    /// Whether this peer published the name, so that it belongs in every catalogue.
    pub(super) published: bool,
}

/// An entry of the download queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadRecord {
    /// The entries that are not finished start in this order. Finished ones have the order in which they finished.
    pub order: u64,
    /// The name in the library.
    pub name: Name,
    /// The claimed kind.
    pub kind: FileKind,
    /// The size in bytes, of a directory the sum of its files: a claim until it is known.
    pub size: u64,
    /// The stored bytes when the download was last interrupted by the user.
    pub done: u64,
    /// The time at which the entry was added.
    pub added_ms: UnixMillis,
    /// Whether the file is to be downloaded.
    pub state: DownloadState,
}

/// The stored state of an entry of the download queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownloadState {
    /// The file is to be downloaded.
    Queued,
    /// The user paused the download.
    Paused,
    /// The file is complete.
    Complete,
    /// The download failed for this reason.
    Failed(String),
}

impl DownloadState {
    /// Whether nothing is left to do.
    pub const fn is_finished(&self) -> bool {
        matches!(self, Self::Complete | Self::Failed(_))
    }
}

impl DownloadRecord {
    /// Encodes the value of an entry.
    pub fn encode(&self) -> Bytes {
        to_cbor(self)
    }
}

/// The location of the content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum ContentPlace {
    Database,
    Files,
    /// A file of the user: `rel` relative to the absolute path `root`.
    Linked {
        root: ByteBuf,
        rel: ByteBuf,
        state: LinkState,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum LinkState {
    /// Incomplete: the content is in a part file with this inode.
    Part { inode: u64, executable: bool, force: bool },
    /// Complete, with this fingerprint.
    Whole(Fingerprint),
}

impl ContentPlace {
    pub(super) fn linked(root: &Path, rel: &Path, state: LinkState) -> Self {
        let bytes = |path: &Path| ByteBuf::from(path.as_os_str().as_bytes());
        Self::Linked { root: bytes(root), rel: bytes(rel), state }
    }

    /// The path of the linked file, or `None` for content in the library's own store.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.root_and_rel().map(|(root, rel)| root.join(rel))
    }

    pub(super) fn root_and_rel(&self) -> Option<(&Path, &Path)> {
        match self {
            Self::Linked { root, rel, .. } => {
                Some((Path::new(OsStr::from_bytes(root)), Path::new(OsStr::from_bytes(rel))))
            }
            _ => None,
        }
    }

    /// The fingerprint of a file that is linked as a whole.
    pub(super) const fn fingerprint(&self) -> Option<&Fingerprint> {
        match self {
            Self::Linked { state: LinkState::Whole(fingerprint), .. } => Some(fingerprint),
            _ => None,
        }
    }

    /// The same link to another version of the file.
    pub(super) fn with_fingerprint(&self, fingerprint: Fingerprint) -> Self {
        match self {
            Self::Linked { root, rel, .. } => {
                Self::Linked { root: root.clone(), rel: rel.clone(), state: LinkState::Whole(fingerprint) }
            }
            own => own.clone(),
        }
    }

    /// Whether this is a link to a complete file with this path and fingerprint.
    pub(super) fn links_to(&self, path: &Path, fingerprint: &Fingerprint) -> bool {
        self.fingerprint() == Some(fingerprint) && self.path().is_some_and(|linked| linked == path)
    }
}

impl Record {
    /// The record of a new incomplete file without names.
    pub(super) const fn new(size: u64, kind: FileKind, place: ContentPlace, added_ms: UnixMillis) -> Self {
        let (published, complete, withdrawn) = (false, false, None);
        let names = Vec::new();
        Self { size, kind, published, place, copies: Vec::new(), names, added_ms, complete, withdrawn }
    }

    /// Adds another place of a file that is linked as a whole. Does nothing unless both are such links.
    pub(super) fn add_copy(&mut self, copy: ContentPlace) {
        let (Some(path), Some(other)) = (self.place.path(), copy.path()) else { return };
        let is_other = |known: &Path| known != path && known != other;
        self.copies.retain(|known| known.path().is_some_and(|known| is_other(&known)));
        if other != path && self.place.fingerprint().is_some() && copy.fingerprint().is_some() {
            self.copies.push(copy);
        }
        if self.copies.len() > MAX_COPIES {
            self.copies.remove(0);
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        to_cbor(self)
    }

    pub(super) fn decode(id: &FileId, bytes: &[u8]) -> Result<Self, StorageError> {
        from_cbor(bytes, || format!("the library record of {id}"))
    }

    pub(super) fn layout(&self) -> Result<PieceLayout> {
        PieceLayout::new(self.size).map_err(|_| {
            StorageError::corrupt(format!("the library record of a file with {} bytes", self.size)).into()
        })
    }
}

fn to_cbor(record: &impl Serialize) -> Bytes {
    let mut out = Vec::with_capacity(256);
    ciborium::into_writer(record, &mut out).expect("CBOR of plain values in memory cannot fail");
    out.into()
}

fn from_cbor<T: DeserializeOwned>(
    mut bytes: &[u8],
    what: impl FnOnce() -> String,
) -> Result<T, StorageError> {
    let decoded = cbor::decode(&mut bytes, 16);
    decoded.map_err(|error| StorageError::Corrupt { what: what(), source: Some(error.into()) })
}

fn key(parts: &[&[u8]]) -> Key {
    Key::new(parts.concat()).expect("keys of the index have 6 to 303 bytes")
}

pub(super) fn format_key() -> Key {
    key(&[b"format"])
}

/// A key of [`SWARM`].
pub fn swarm_key(name: &'static str) -> Key {
    key(&[name.as_bytes()])
}

/// The key in [`DOWNLOADS`] of a file or directory.
pub fn download_key(id: &FileId) -> Key {
    id_key(id)
}

/// Decodes an entry of [`DOWNLOADS`].
pub fn read_download(key: &Key, value: &[u8]) -> Result<(FileId, DownloadRecord), StorageError> {
    let id = key.as_bytes().try_into().map_err(|_| malformed_key(DOWNLOADS))?;
    Ok((id, from_cbor(value, || format!("the download of {id}"))?))
}

const REVOKED: &[u8] = b"revoked";

/// The key in [`SWARM`] of a revoked peer.
pub fn revoked_key(peer: &PeerId) -> Key {
    key(&[REVOKED, peer.as_bytes()])
}

/// The range of the keys in [`SWARM`] of all revoked peers.
pub fn revoked_keys() -> KeyRange {
    KeyRange::prefix(REVOKED)
}

/// Decodes a key made by [`revoked_key`].
pub fn read_revoked_key(key: &Key) -> Option<PeerId> {
    PeerId::try_from(key.as_bytes().strip_prefix(REVOKED)?).ok()
}

pub(super) fn id_key(id: &FileId) -> Key {
    key(&[id.as_bytes()])
}

pub(super) fn page_key(id: &FileId, page: usize) -> Key {
    // At most 1024 pages: a million pieces.
    key(&[id.as_bytes(), &(page as u32).to_be_bytes()])
}

pub(super) fn member_key(member: &FileId, collection: &FileId) -> Key {
    key(&[member.as_bytes(), collection.as_bytes()])
}

pub(super) fn ack_key((catalogue, id, name): &AckKey) -> Key {
    key(&[&catalogue.0, id.as_bytes(), name.as_str().as_bytes()])
}

fn malformed_key(space: Space) -> StorageError {
    StorageError::corrupt(format!("a key in the space {}", space.name()))
}

/// Splits a key into the id at its start and the rest.
pub(super) fn split_id(space: Space, key: &Key) -> Result<(FileId, &[u8]), StorageError> {
    let (id, rest) = key.as_bytes().split_first_chunk::<32>().ok_or_else(|| malformed_key(space))?;
    Ok((FileId::from_bytes(*id), rest))
}

pub(super) fn split_page(space: Space, key: &Key) -> Result<(FileId, usize), StorageError> {
    let (id, page) = split_id(space, key)?;
    let page: [u8; 4] = page.try_into().map_err(|_| malformed_key(space))?;
    Ok((id, u32::from_be_bytes(page) as usize))
}

pub(super) fn split_member(key: &Key) -> Result<(FileId, FileId), StorageError> {
    let (member, collection) = split_id(MEMBERS, key)?;
    Ok((member, collection.try_into().map_err(|_| malformed_key(MEMBERS))?))
}

pub(super) fn split_ack(key: &Key) -> Result<AckKey, StorageError> {
    let (catalogue, rest) = key.as_bytes().split_first_chunk::<16>().ok_or_else(|| malformed_key(ACKS))?;
    let (id, name) = rest.split_first_chunk::<32>().ok_or_else(|| malformed_key(ACKS))?;
    let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
    Ok((CatalogueId(*catalogue), FileId::from_bytes(*id), name.ok_or_else(|| malformed_key(ACKS))?))
}

/// The acknowledgement of a publication.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    /// Its time, by the clock of the tracker; 0 if the catalogue may have lost the publication.
    pub(super) at: UnixMillis,
    /// The version.
    pub(super) version: u64,
    /// Whether the version was new, if this process received the acknowledgement.
    pub(super) new: Option<bool>,
}

impl Ack {
    pub(super) fn is_lost(&self) -> bool {
        self.at == UnixMillis(0)
    }

    /// The same acknowledgement after the catalogue may have lost the publication.
    pub(super) fn lost(self) -> Self {
        Self { at: UnixMillis(0), new: None, ..self }
    }
}

/// The value of an acknowledgement: its time and version.
pub(super) fn ack_value(ack: &Ack) -> Vec<u8> {
    [ack.at.get().to_be_bytes(), ack.version.to_be_bytes()].concat()
}

pub(super) fn read_ack(value: &[u8]) -> Result<Ack, StorageError> {
    let (&[at, version], []) = value.as_chunks::<8>() else {
        return Err(StorageError::corrupt(format!("a value in the space {}", ACKS.name())));
    };
    let (at, version) = (UnixMillis(u64::from_be_bytes(at)), u64::from_be_bytes(version));
    Ok(Ack { at, version, new: None })
}

/// Puts the hash records of a file. A file with at most one piece has none, since its id is the hash.
pub(super) fn put_hashes(batch: &mut Batch, id: &FileId, hashes: &[PieceHash]) {
    if hashes.len() > 1 {
        for (page, hashes) in hashes.chunks(HASHES_PER_PAGE).enumerate() {
            batch.put(HASHES, page_key(id, page), hashes.concat());
        }
    }
}

pub(super) const fn hash_pages(layout: PieceLayout) -> usize {
    if layout.count() > 1 { (layout.count() as usize).div_ceil(HASHES_PER_PAGE) } else { 0 }
}

pub(super) const fn bitmap_pages(layout: PieceLayout) -> usize {
    (layout.count() as usize).div_ceil(8 * BITMAP_PAGE)
}

/// The page of a bitmap that contains the bit of the piece.
pub(super) const fn page_of(piece: PieceIndex) -> usize {
    piece.as_usize() / (8 * BITMAP_PAGE)
}

/// Puts one page of a bitmap, or deletes it if no bit is set.
pub(super) fn put_bitmap_page(batch: &mut Batch, space: Space, id: &FileId, bitmap: &Bitmap, page: usize) {
    let bytes = bitmap.as_bytes().chunks(BITMAP_PAGE).nth(page).unwrap_or_default();
    if bytes.iter().all(|byte| *byte == 0) {
        batch.delete(space, page_key(id, page));
    } else {
        batch.put(space, page_key(id, page), bytes.to_vec());
    }
}

/// Deletes every record of a file except its tombstone and its memberships in collections.
pub(super) fn delete_records(batch: &mut Batch, id: &FileId, layout: PieceLayout) {
    batch.delete(FILES, id_key(id));
    for page in 0..hash_pages(layout) {
        batch.delete(HASHES, page_key(id, page));
    }
    delete_bitmaps(batch, id, layout);
}

pub(super) fn delete_acks(batch: &mut Batch, acks: &[AckKey]) {
    for ack in acks {
        batch.delete(ACKS, ack_key(ack));
    }
}

pub(super) fn delete_bitmaps(batch: &mut Batch, id: &FileId, layout: PieceLayout) {
    for page in 0..bitmap_pages(layout) {
        batch.delete(HAVE, page_key(id, page));
        batch.delete(DIRTY, page_key(id, page));
    }
}

/// Assembles a bitmap from its pages in order. Damaged pages count as empty: they cost pieces, not the file.
pub(super) fn bitmap_from_pages(layout: PieceLayout, pages: &[Option<Bytes>]) -> Bitmap {
    let mut bytes = vec![0; layout.count().div_ceil(8) as usize];
    for (target, page) in bytes.chunks_mut(BITMAP_PAGE).zip(pages) {
        if let Some(page) = page.as_ref().filter(|page| page.len() == target.len()) {
            target.copy_from_slice(page);
        }
    }
    Bitmap::from_bytes(layout, &bytes).unwrap_or_else(|_| Bitmap::empty(layout))
}
