//! Copying the content of a closed library from one store to another, piece by piece.
//!
//! A copy contains the pieces that the index claims. Every piece is verified and split for the target, so
//! content can be copied from a database to plain files and back. Linked files stay where they are. The
//! records are copied with [`crate::record_copy`] and [`relocate_record`].
//!
//! The progress of a copy is recorded in another database. It applies only to a content store with the marker
//! of that copy.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::content::{self, ContentStore, DatabaseContent, in_dir};
use super::content_files::{self, ContentFile, StoredPiece};
use super::error::{LibraryError, Result};
use super::layout::{self, ContentPlace, DIRTY, FILES, HAVE, Record, TOMBS};
use super::load::{load_bitmap, load_manifest};
use super::task::blocking;
use crate::record_copy::hash_entries;
use crate::record_copy::mark::MARKS;
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::{
    Batch, Bitmap, Durability, FileId, Key, KeyRange, Manifest, PieceIndex, PieceLayout, Space, Storage,
    StorageError, StorageExt,
};

const STEP_BYTES: usize = 1 << 20;
const STEP_PIECES: usize = 256;
/// The number of bytes of unused buffers that are kept.
const POOLED_BUFFERS: usize = 8 << 20;
/// The number of entries that are read at once.
const PAGE: usize = 500;

const MARKER_FILE: &str = "copying";
/// The length of a marker in bytes.
const MARKER_LENGTH: u64 = 16;

fn marker_key() -> Key {
    Key::new(&b"content"[..]).expect("the key has 7 bytes")
}

/// A number of pieces and of their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PieceTotals {
    /// The number of pieces.
    pub count: u64,
    /// The number of bytes.
    pub bytes: u64,
}

impl PieceTotals {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// A copy or a verification in progress. The caller calls [`ContentCopy::step`] until it returns `None`.
#[derive(Debug)]
pub struct ContentCopy {
    index: Arc<dyn Storage>,
    from: ContentStore,
    /// The target, or `None` to verify only.
    to: Option<ContentStore>,
    files: ClaimedFiles,
    /// The current file and the pieces that are left.
    current: Option<(Arc<Manifest>, ClaimedFile, VecDeque<PieceIndex>)>,
    /// Pieces that were read and verified, but not written.
    ready: Option<Vec<CopiedPiece>>,
    at: Option<(FileId, u32)>,
    buffers: BufferPool,
}

/// A piece on its way from the source to the target.
#[derive(Debug)]
struct CopiedPiece {
    manifest: Arc<Manifest>,
    piece: PieceIndex,
    /// Whether the index claims the piece. Otherwise it may have been written.
    claimed: bool,
    content: Option<Bytes>,
}

/// The pieces that the index claims of a file in the library's own store.
#[derive(Debug)]
struct ClaimedFile {
    id: FileId,
    layout: PieceLayout,
    /// The claimed and the intended pieces, or `None` if the file is complete.
    incomplete: Option<(Bitmap, Bitmap)>,
}

impl ClaimedFile {
    fn claims(&self, piece: PieceIndex) -> bool {
        self.incomplete.as_ref().is_none_or(|(claimed, _)| claimed.contains(piece))
    }

    fn pieces(&self) -> impl Iterator<Item = PieceIndex> {
        self.layout.pieces().filter(|piece| match &self.incomplete {
            None => true,
            Some((claimed, intended)) => claimed.contains(*piece) || intended.contains(*piece),
        })
    }
}

/// The files of an index whose content is in a store.
#[derive(Debug)]
struct ClaimedFiles {
    index: Arc<dyn Storage>,
    place: ContentPlace,
    records: VecDeque<(FileId, Record)>,
    range: KeyRange,
}

impl ClaimedFiles {
    fn new(index: &Arc<dyn Storage>, store: &ContentStore) -> Self {
        Self {
            index: Arc::clone(index),
            place: store.place(),
            records: VecDeque::new(),
            range: KeyRange::all(),
        }
    }

    async fn next(&mut self) -> Result<Option<ClaimedFile>> {
        loop {
            if self.records.is_empty() {
                let page = self.index.scan(FILES, self.range.clone(), PAGE).await?;
                let Some((last, _)) = page.last() else { return Ok(None) };
                self.range = self.range.after(last);
                for (key, value) in page {
                    let (id, _) = layout::split_id(FILES, &key)?;
                    self.records.push_back((id, Record::decode(&id, &value)?));
                }
            }
            let Some((id, record)) = self.records.pop_front() else { continue };
            if matches!(record.place, ContentPlace::Linked { .. }) {
                continue;
            }
            if record.place != self.place {
                return Err(LibraryError::OtherStore(id));
            }
            let layout = record.layout()?;
            let incomplete = match record.complete {
                true => None,
                false => Some((
                    load_bitmap(&*self.index, HAVE, &id, layout).await?,
                    load_bitmap(&*self.index, DIRTY, &id, layout).await?,
                )),
            };
            return Ok(Some(ClaimedFile { id, layout, incomplete }));
        }
    }
}

impl ContentCopy {
    /// Begins a copy of the content that the index claims. `after` is the position at which an earlier copy
    /// stopped, see [`ContentCopy::sync`].
    pub async fn new(
        index: Arc<dyn Storage>,
        from: ContentStore,
        to: ContentStore,
        after: Option<&[u8]>,
    ) -> Result<Self> {
        to.create().await?;
        let mut copy = Self::with_target(index, from, Some(to));
        let Some(after) = after else { return Ok(copy) };
        let position =
            after.split_first_chunk::<32>().and_then(|(id, piece)| Some((*id, piece.try_into().ok()?)));
        let Some((id, piece)) = position else {
            return Err(StorageError::corrupt("the position of a copy").into());
        };
        let (id, piece) = (FileId::from_bytes(id), u32::from_be_bytes(piece));
        copy.at = Some((id, piece));
        while let Some(file) = copy.files.next().await? {
            if file.id < id {
                continue;
            }
            let skipped = if file.id == id { Some(piece) } else { None };
            copy.begin_file(file, skipped).await?;
            break;
        }
        Ok(copy)
    }

    /// Reads and verifies the content that the index claims, without a copy.
    pub fn verification(index: Arc<dyn Storage>, store: ContentStore) -> Self {
        Self::with_target(index, store, None)
    }

    fn with_target(index: Arc<dyn Storage>, from: ContentStore, to: Option<ContentStore>) -> Self {
        let files = ClaimedFiles::new(&index, &from);
        let buffers = BufferPool::new(POOLED_BUFFERS);
        Self { index, from, to, files, current: None, ready: None, at: None, buffers }
    }

    async fn begin_file(&mut self, file: ClaimedFile, after: Option<u32>) -> Result<()> {
        let manifest = Arc::new(load_manifest(&*self.index, &file.id, file.layout).await?);
        let pieces = file.pieces().filter(|piece| after.is_none_or(|after| piece.get() > after)).collect();
        self.current = Some((manifest, file, pieces));
        Ok(())
    }

    /// Copies a few pieces, or returns `None` after the last one. The totals of a step may be 0, since
    /// intended pieces may be missing.
    ///
    /// # Errors
    /// [`LibraryError::MissingPiece`] and [`LibraryError::Damaged`] if a claimed piece is missing or damaged.
    pub async fn step(&mut self) -> Result<Option<PieceTotals>> {
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None => self.read().await?,
        };
        let Some(last) = ready.last() else { return Ok(None) };
        let at = (last.manifest.id(), last.piece.get());
        let mut totals = PieceTotals::default();
        for content in ready.iter().filter_map(|one| one.content.as_ref()) {
            totals.add(content.len() as u64);
        }
        let stored = |one: CopiedPiece| {
            Some(StoredPiece::new(one.manifest.id(), one.manifest.layout(), one.piece, one.content?))
        };
        match self.to.clone() {
            // The next pieces are read while these are written.
            Some(to) => {
                let (written, next) =
                    tokio::join!(to.write(ready.into_iter().filter_map(stored).collect()), self.read());
                written?;
                self.ready = Some(next?);
            }
            None => drop(ready),
        }
        self.at = Some(at);
        Ok(Some(totals))
    }

    /// Makes the copied pieces durable in the target. Returns the position of the copy.
    pub async fn sync(&self) -> Result<Option<Vec<u8>>> {
        if let Some(to) = &self.to {
            to.sync().await?;
        }
        Ok(self.at.map(|(id, piece)| [id.as_bytes(), &piece.to_be_bytes()[..]].concat()))
    }

    async fn read(&mut self) -> Result<Vec<CopiedPiece>> {
        let mut chosen: Vec<CopiedPiece> = Vec::new();
        let mut bytes = 0;
        while bytes < STEP_BYTES && chosen.len() < STEP_PIECES {
            let Some((manifest, file, pieces)) = &mut self.current else {
                let Some(file) = self.files.next().await? else { break };
                self.begin_file(file, None).await?;
                continue;
            };
            let Some(piece) = pieces.pop_front() else {
                self.current = None;
                continue;
            };
            bytes += file.layout.len(piece);
            let claimed = file.claims(piece);
            chosen.push(CopiedPiece { manifest: Arc::clone(manifest), piece, claimed, content: None });
        }
        let read = match &self.from {
            ContentStore::Database(content) => {
                let content = DatabaseContent(Arc::clone(content));
                let read = chosen.iter().map(|one| {
                    let content = &content;
                    async move { content.read(&one.manifest.id(), one.manifest.layout(), one.piece).await }
                });
                let read = try_join_all(read).await?;
                for (one, content) in chosen.iter_mut().zip(read) {
                    one.content = content;
                }
                chosen
            }
            ContentStore::Files(dir) => {
                let buffers = self.buffers.clone();
                in_dir(dir, move |dir| read_files(dir, chosen, &buffers)).await?
            }
        };
        let (verified, invalid) = blocking(move || Ok(verify(read))).await?;
        for error in invalid {
            // The content of a file that is being removed may be missing.
            let (LibraryError::Damaged { id, .. } | LibraryError::MissingPiece { id, .. }) = &error else {
                return Err(error);
            };
            if self.index.get(TOMBS, &[layout::id_key(id)]).await?.iter().all(Option::is_none) {
                return Err(error);
            }
        }
        Ok(verified)
    }
}

/// Drops invalid content. Returns an error for each claimed piece without valid content.
fn verify(mut pieces: Vec<CopiedPiece>) -> (Vec<CopiedPiece>, Vec<LibraryError>) {
    let mut invalid = Vec::new();
    for CopiedPiece { manifest, piece, claimed, content } in &mut pieces {
        let (id, damaged) = (manifest.id(), content.is_some());
        content.take_if(|content| !manifest.piece_is(*piece, content));
        if content.is_none() && *claimed {
            let piece = piece.get();
            invalid.push(match damaged {
                true => LibraryError::Damaged { id, piece },
                false => LibraryError::MissingPiece { id, piece },
            });
        }
    }
    (pieces, invalid)
}

fn read_files(dir: &Path, mut chosen: Vec<CopiedPiece>, buffers: &BufferPool) -> Result<Vec<CopiedPiece>> {
    let mut open: Option<(FileId, Option<ContentFile>)> = None;
    for one in &mut chosen {
        let id = one.manifest.id();
        if open.as_ref().is_none_or(|(opened, _)| *opened != id) {
            let path = content_files::path_of(dir, &id);
            let file = match File::open(&path) {
                Ok(file) => Some(ContentFile::new(path, file)),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(LibraryError::io("open", &path, error)),
            };
            open = Some((id, file));
        }
        if let Some((_, Some(file))) = &open {
            one.content = file.read(one.manifest.layout(), one.piece, buffers)?;
        }
    }
    Ok(chosen)
}

/// Counts the claimed and the intended pieces of an index in a store.
pub async fn claimed_pieces(index: &Arc<dyn Storage>, store: &ContentStore) -> Result<PieceTotals> {
    let mut files = ClaimedFiles::new(index, store);
    let mut totals = PieceTotals::default();
    while let Some(file) = files.next().await? {
        match &file.incomplete {
            None => {
                totals.count += u64::from(file.layout.count());
                totals.bytes += file.layout.size();
            }
            Some(_) => file.pieces().for_each(|piece| totals.add(file.layout.len(piece) as u64)),
        }
    }
    Ok(totals)
}

/// Whether the sizes in a store match a copy: the totals in a database, and with plain files the end of the
/// last claimed piece of each file.
pub async fn has_copied_sizes(
    index: &Arc<dyn Storage>,
    store: &ContentStore,
    copied: PieceTotals,
) -> Result<bool> {
    match store {
        ContentStore::Database(content) => {
            let mut found = PieceTotals::default();
            let mut last: Option<Bytes> = None;
            for space in content::SPACES {
                let mut entries = content.entries(*space, KeyRange::all(), PAGE);
                while let Some((key, value)) = entries.next().await? {
                    let key = key.into_bytes();
                    let piece = key.slice(..key.len().min(36));
                    if last.as_ref() != Some(&piece) {
                        found.count += 1;
                        last = Some(piece);
                    }
                    found.bytes += value.len() as u64;
                }
            }
            Ok(found == copied)
        }
        ContentStore::Files(dir) => {
            let mut files = ClaimedFiles::new(index, store);
            while let Some(file) = files.next().await? {
                let Some(last) = file.pieces().filter(|piece| file.claims(*piece)).last() else { continue };
                let end = file.layout.offset(last) + file.layout.len(last) as u64;
                let path = content_files::path_of(dir, &file.id);
                let size = blocking(move || Ok(std::fs::metadata(path).map_or(0, |found| found.size())));
                if size.await? < end {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// Hashes the claims of an index, so that a changed index is detected when a copy is resumed.
pub async fn claims_hash(index: &dyn Storage) -> Result<[u8; 32], StorageError> {
    let mut hasher = blake3::Hasher::new();
    for space in [FILES, HAVE, DIRTY] {
        hash_entries(index, space, &mut hasher).await?;
        hasher.update(&[0xff; 8]);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Changes the record of a file whose content is moved to this store. Returns other values unchanged.
pub fn relocate_record(
    store: &ContentStore,
    space: Space,
    key: &Key,
    value: Bytes,
) -> Result<Bytes, StorageError> {
    if space != FILES && space != TOMBS {
        return Ok(value);
    }
    let (id, _) = layout::split_id(space, key)?;
    let mut record = Record::decode(&id, &value)?;
    let place = store.place();
    if matches!(record.place, ContentPlace::Linked { .. }) || record.place == place {
        return Ok(value);
    }
    record.place = place;
    Ok(record.encode())
}

/// Reads the marker of a store, if it has one.
pub async fn read_marker(store: &ContentStore) -> Result<Option<Bytes>> {
    match store {
        ContentStore::Database(content) => {
            Ok(content.get(MARKS, &[marker_key()]).await?.into_iter().next().flatten())
        }
        ContentStore::Files(dir) => {
            in_dir(dir, |dir| {
                let path = dir.join(MARKER_FILE);
                let mut marker = Vec::new();
                // One byte more than a marker has, so that a longer file does not match any.
                let read =
                    File::open(&path).and_then(|file| file.take(MARKER_LENGTH + 1).read_to_end(&mut marker));
                match read {
                    Ok(_) => Ok(Some(marker.into())),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(LibraryError::io("read", &path, error)),
                }
            })
            .await
        }
    }
}

/// Writes a new random marker to a store. It is durable on return.
pub async fn renew_marker(store: &ContentStore) -> Result<Bytes> {
    let marker = Bytes::copy_from_slice(&rand::random::<[u8; MARKER_LENGTH as usize]>());
    match store {
        ContentStore::Database(content) => {
            let mut batch = Batch::new();
            batch.put(MARKS, marker_key(), marker.clone());
            content.commit(batch, Durability::Durable).await?;
        }
        ContentStore::Files(dir) => {
            let marker = marker.clone();
            in_dir(dir, move |dir| {
                content_files::create_dir(dir)?;
                let path = dir.join(MARKER_FILE);
                File::create(&path)
                    .and_then(|mut file| file.write_all(&marker))
                    .map_err(|error| LibraryError::io("write", &path, error))?;
                content_files::sync_file_system(dir)
            })
            .await?;
        }
    }
    Ok(marker)
}

/// Removes the marker of a store, if it has one.
pub async fn remove_marker(store: &ContentStore) -> Result<()> {
    match store {
        ContentStore::Database(content) => {
            let mut batch = Batch::new();
            batch.delete(MARKS, marker_key());
            Ok(content.commit(batch, Durability::Durable).await?)
        }
        ContentStore::Files(dir) => {
            in_dir(dir, |dir| content_files::remove_file(&dir.join(MARKER_FILE))).await
        }
    }
}
