//! What the index holds: its spaces, keys and records. Values have at most 32 KiB.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | `library_meta` | `format` | version, 8 bytes big-endian |
//! | `library_files` | id | [`Record`] in CBOR |
//! | `library_hashes` | id, page (4 bytes) | up to 1024 piece hashes; none for files of one piece |
//! | `library_have` | id, page | bits of pieces that are synced, while the file is incomplete |
//! | `library_dirty` | id, page | bits of pieces that may be written but are not known to be synced |
//! | `library_members` | member, collection | empty record of 1 byte |
//! | `library_tombs` | id | what remains to be removed: the file's [`Record`] |
//! | `library_acks` | catalogue (16), id, name | 1 byte: the catalogue acknowledged the name |
//! | `library_swarm` | `membership` | the node's newest membership as a tracker signed it; only in swarms by invitation, as what follows |
//! | `library_swarm` | `revocations` | the authority's public key (32) and up to which version all revocations are known (8) |
//! | `library_swarm` | `revoked`, peer id | the version with which the peer was thrown out (8) |
//!
//! Numbers in keys are big-endian, so that pages follow each other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::error::LibraryError;
use super::linked::Fingerprint;
use crate::machine;
use crate::model::bitmap::Bitmap;
use crate::model::id::{FileId, PeerId};
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::manifest::PieceHash;
use crate::model::name::Name;
use crate::model::record::FileKind;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Key, KeyRange, Space};

pub(super) const META: Space = Space::new("library_meta");
pub(super) const FILES: Space = Space::new("library_files");
pub(super) const HASHES: Space = Space::new("library_hashes");
pub(super) const HAVE: Space = Space::new("library_have");
pub(super) const DIRTY: Space = Space::new("library_dirty");
pub(super) const MEMBERS: Space = Space::new("library_members");
pub(super) const TOMBS: Space = Space::new("library_tombs");
pub(super) const ACKS: Space = Space::new("library_acks");
/// What is known of a swarm by invitation.
pub const SWARM: Space = Space::new("library_swarm");

/// Every space of an index.
pub const SPACES: &[Space] = &[META, FILES, HASHES, HAVE, DIRTY, MEMBERS, TOMBS, ACKS, SWARM];

/// The version of this layout.
pub const FORMAT: u64 = 1;
/// Hashes in one record: 32 KiB.
pub(super) const HASHES_PER_PAGE: usize = 1024;
/// Bytes of a bitmap in one record: small, since a checkpoint writes whole records.
pub(super) const BITMAP_PAGE: usize = 1024;
/// The most names that are kept of one file; the oldest goes.
pub(super) const MAX_NAMES: usize = 32;

/// A file, as the index holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) kind: FileKind,
    pub(super) published: bool,
    pub(super) place: Place,
    pub(super) names: Vec<NameRecord>,
    pub(super) added_ms: u64,
    /// Every piece is there and synced.
    pub(super) complete: bool,
    pub(super) withdrawn: bool,
}

/// A name of a file; the one with the highest number is the newest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NameRecord {
    pub(super) name: Name,
    pub(super) number: u64,
    /// Published here, so that catalogues are to know it.
    pub(super) published: bool,
}

/// Where the content is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Place {
    Database,
    Files,
    /// A file of the user: `rel` beneath the absolute path `root`.
    Linked {
        root: ByteBuf,
        rel: ByteBuf,
        state: LinkState,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum LinkState {
    /// Still being filled, in a part file with this inode.
    Part { inode: u64, executable: bool, force: bool },
    /// It was whole and looked like this.
    Whole(Fingerprint),
}

impl Place {
    pub(super) fn linked(root: &Path, rel: &Path, state: LinkState) -> Self {
        let bytes = |path: &Path| ByteBuf::from(path.as_os_str().as_bytes());
        Self::Linked { root: bytes(root), rel: bytes(rel), state }
    }

    /// The path of a linked file.
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
}

impl Record {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(256);
        ciborium::into_writer(self, &mut out).expect("plain values are written to memory without fail");
        out.into()
    }

    pub(super) fn decode(id: &FileId, bytes: &[u8]) -> Result<Self, StorageError> {
        ciborium::de::from_reader_with_recursion_limit(bytes, 16).map_err(|error| StorageError::Corrupt {
            what: format!("the library's record of {id} cannot be read"),
            source: Some(Box::new(error)),
        })
    }

    pub(super) fn layout(&self) -> Result<PieceLayout, LibraryError> {
        PieceLayout::new(self.size).map_err(|_| {
            StorageError::corrupt(format!("a file of {} bytes in the library", self.size)).into()
        })
    }
}

fn key(parts: &[&[u8]]) -> Key {
    Key::new(parts.concat()).expect("the keys of the library have 6 to 303 bytes")
}

pub(super) fn format_key() -> Key {
    key(&[b"format"])
}

/// A key of [`SWARM`].
pub fn swarm_key(name: &'static str) -> Key {
    key(&[name.as_bytes()])
}

const REVOKED: &[u8] = b"revoked";

/// The key in [`SWARM`] of a peer that was thrown out.
pub fn revoked_key(peer: &PeerId) -> Key {
    key(&[REVOKED, peer.as_bytes()])
}

/// The keys in [`SWARM`] of all peers that were thrown out.
pub fn revoked_keys() -> KeyRange {
    KeyRange::prefix(REVOKED)
}

/// The peer of a key that [`revoked_key`] made.
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

pub(super) fn ack_key(catalogue: &[u8; 16], id: &FileId, name: &Name) -> Key {
    key(&[catalogue, id.as_bytes(), name.as_str().as_bytes()])
}

fn odd_key(space: Space) -> StorageError {
    StorageError::corrupt(format!("a key in the space {} has another form", space.name()))
}

/// The id that a key begins with, and what follows.
pub(super) fn split_id(space: Space, key: &Key) -> Result<(FileId, &[u8]), StorageError> {
    let (id, rest) = key.as_bytes().split_first_chunk::<32>().ok_or_else(|| odd_key(space))?;
    Ok((FileId::from_bytes(*id), rest))
}

pub(super) fn split_page(space: Space, key: &Key) -> Result<(FileId, usize), StorageError> {
    let (id, page) = split_id(space, key)?;
    let page: [u8; 4] = page.try_into().map_err(|_| odd_key(space))?;
    Ok((id, u32::from_be_bytes(page) as usize))
}

pub(super) fn split_member(key: &Key) -> Result<(FileId, FileId), StorageError> {
    let (member, collection) = split_id(MEMBERS, key)?;
    Ok((member, collection.try_into().map_err(|_| odd_key(MEMBERS))?))
}

pub(super) fn split_ack(key: &Key) -> Result<([u8; 16], FileId, Name), StorageError> {
    let (catalogue, rest) = key.as_bytes().split_first_chunk::<16>().ok_or_else(|| odd_key(ACKS))?;
    let (id, name) = rest.split_first_chunk::<32>().ok_or_else(|| odd_key(ACKS))?;
    let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
    Ok((*catalogue, FileId::from_bytes(*id), name.ok_or_else(|| odd_key(ACKS))?))
}

/// The records of a file's hashes; none where the id says it all.
pub(super) fn put_hashes(batch: &mut Batch, id: &FileId, hashes: &[PieceHash]) {
    if hashes.len() > 1 {
        for (page, hashes) in hashes.chunks(HASHES_PER_PAGE).enumerate() {
            batch.put(HASHES, page_key(id, page), hashes.concat());
        }
    }
}

/// The number of records that hold the hashes of a file.
pub(super) const fn hash_pages(layout: PieceLayout) -> usize {
    if layout.count() > 1 { (layout.count() as usize).div_ceil(HASHES_PER_PAGE) } else { 0 }
}

/// The number of records that hold a bitmap of a file.
pub(super) const fn bitmap_pages(layout: PieceLayout) -> usize {
    (layout.count() as usize).div_ceil(8 * BITMAP_PAGE)
}

/// The record of a bitmap in which the piece's bit is.
pub(super) const fn page_of(piece: PieceIndex) -> usize {
    piece.as_usize() / (8 * BITMAP_PAGE)
}

/// Writes one record of a bitmap, or takes it away where no bit of it is set.
pub(super) fn put_bitmap_page(batch: &mut Batch, space: Space, id: &FileId, bitmap: &Bitmap, page: usize) {
    let bytes = bitmap.as_bytes().chunks(BITMAP_PAGE).nth(page).unwrap_or_default();
    if bytes.iter().all(|byte| *byte == 0) {
        batch.delete(space, page_key(id, page));
    } else {
        batch.put(space, page_key(id, page), bytes.to_vec());
    }
}

/// Takes away every record of a file but its tombstone and what collections it belongs to.
pub(super) fn delete_records(batch: &mut Batch, id: &FileId, layout: PieceLayout) {
    batch.delete(FILES, id_key(id));
    for page in 0..hash_pages(layout) {
        batch.delete(HASHES, page_key(id, page));
    }
    delete_bitmaps(batch, id, layout);
}

/// Takes away both bitmaps of a file.
pub(super) fn delete_bitmaps(batch: &mut Batch, id: &FileId, layout: PieceLayout) {
    for page in 0..bitmap_pages(layout) {
        batch.delete(HAVE, page_key(id, page));
        batch.delete(DIRTY, page_key(id, page));
    }
}

/// Reads a bitmap back from its records, in the order of their pages. Damage costs pieces, not the file.
pub(super) fn bitmap_from_pages(layout: PieceLayout, pages: &[Option<Bytes>]) -> Bitmap {
    let mut bytes = vec![0; layout.count().div_ceil(8) as usize];
    for (target, page) in bytes.chunks_mut(BITMAP_PAGE).zip(pages) {
        if let Some(page) = page.as_ref().filter(|page| page.len() == target.len()) {
            target.copy_from_slice(page);
        }
    }
    Bitmap::from_bytes(layout, &bytes).unwrap_or_else(|_| Bitmap::empty(layout))
}

/// Runs what blocks away from the async workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LibraryError> + Send + 'static,
) -> Result<T, LibraryError> {
    finished(machine::spawn_blocking(work)).await
}

/// Waits for a task; a panic in it goes on here.
pub(crate) async fn finished<T>(
    task: tokio::task::JoinHandle<Result<T, LibraryError>>,
) -> Result<T, LibraryError> {
    match task.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(LibraryError::Closed),
        },
    }
}
