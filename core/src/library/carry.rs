//! Carries the content of a library that nobody has open from one store to another, piece by piece.
//!
//! What is to be carried is what the index claims. Every piece is proven on its way, cut anew to what the target holds,
//! and may go from a database to plain files and back. Content of the user's own files is only linked, so it stays where
//! it is. The records follow by [`crate::storage::copy`], with [`placed`] as their change.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::content::{self, ContentStore, DatabaseContent};
use super::content_files::{self, ContentFile};
use super::error::LibraryError;
use super::layout::{self, DIRTY, FILES, HAVE, Place, Record, TOMBS};
use super::open::{load_bitmap, load_manifest};
use crate::buffers::BufferPool;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::manifest::Manifest;
use crate::storage::Storage;
use crate::storage::copy::{Walk, empty as empty_spaces, hash_entries, is_empty as are_empty};
use crate::storage::error::StorageError;
use crate::storage::value::{Key, Space};

/// How much goes at once.
const STEP_BYTES: usize = 1 << 20;
const STEP_PIECES: usize = 256;
const KEPT_BUFFERS: usize = 8 << 20;

/// Pieces and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// How many.
    pub count: u64,
    /// Their content, in bytes.
    pub bytes: u64,
}

/// Content on its way. [`Carry::step`] is called until there is nothing left.
#[derive(Debug)]
pub struct Carry {
    index: Arc<dyn Storage>,
    from: ContentStore,
    /// None where it is only proven.
    to: Option<ContentStore>,
    plan: Plan,
    /// The file that is read, and which of its pieces are still to come.
    current: Option<(Arc<Manifest>, Wanted, VecDeque<PieceIndex>)>,
    /// Read, proven, and not yet written.
    ready: Option<Vec<Proven>>,
    /// Everything up to this one was written.
    at: Option<(FileId, u32)>,
    buffers: BufferPool,
}

/// A piece that was read.
#[derive(Debug)]
struct Read {
    manifest: Arc<Manifest>,
    piece: PieceIndex,
    /// Whether the index claims it; otherwise it may only have been written.
    sure: bool,
    content: Option<Bytes>,
}

/// A piece that is what its id says, or none where it is not there and need not be.
#[derive(Debug)]
struct Proven {
    manifest: Arc<Manifest>,
    piece: PieceIndex,
    content: Option<Bytes>,
}

/// What the index says of a file whose content is the library's own.
#[derive(Debug)]
struct Wanted {
    id: FileId,
    layout: PieceLayout,
    /// None: every piece.
    sure: Option<Bitmap>,
    doubtful: Option<Bitmap>,
}

impl Wanted {
    fn is_sure(&self, piece: PieceIndex) -> bool {
        self.sure.as_ref().is_none_or(|sure| sure.contains(piece))
    }

    fn pieces(&self) -> impl Iterator<Item = PieceIndex> {
        let doubtful = |piece| self.doubtful.as_ref().is_some_and(|doubtful| doubtful.contains(piece));
        self.layout.pieces().filter(move |piece| self.is_sure(*piece) || doubtful(*piece))
    }
}

/// The files of an index whose content is in one of these stores.
#[derive(Debug)]
struct Plan {
    index: Arc<dyn Storage>,
    place: Place,
    records: VecDeque<(FileId, Record)>,
    after: Option<Key>,
    ended: bool,
}

impl Plan {
    fn new(index: &Arc<dyn Storage>, store: &ContentStore) -> Self {
        Self {
            index: Arc::clone(index),
            place: place_in(store),
            records: VecDeque::new(),
            after: None,
            ended: false,
        }
    }

    async fn next(&mut self) -> Result<Option<Wanted>, LibraryError> {
        loop {
            if self.records.is_empty() && !self.ended {
                let mut range = crate::storage::value::KeyRange::all();
                if let Some(after) = &self.after {
                    range = range.after(after);
                }
                let page = self.index.scan(FILES, range, 500).await?;
                self.ended = page.is_empty();
                for (key, value) in page {
                    let (id, _) = layout::split_id(FILES, &key)?;
                    self.records.push_back((id, Record::decode(&id, &value)?));
                    self.after = Some(key);
                }
            }
            let Some((id, record)) = self.records.pop_front() else { return Ok(None) };
            if matches!(record.place, Place::Linked { .. }) {
                continue;
            }
            if record.place != self.place {
                return Err(LibraryError::OtherStore { id });
            }
            let layout = record.layout()?;
            let (sure, doubtful) = match record.complete {
                true => (None, None),
                false => (
                    Some(load_bitmap(&*self.index, HAVE, &id, layout).await?),
                    Some(load_bitmap(&*self.index, DIRTY, &id, layout).await?),
                ),
            };
            return Ok(Some(Wanted { id, layout, sure, doubtful }));
        }
    }
}

fn place_in(store: &ContentStore) -> Place {
    match store {
        ContentStore::Database(_) => Place::Database,
        ContentStore::Files(_) => Place::Files,
    }
}

impl Carry {
    /// Carries what this index claims. `after` is where an earlier one was, see [`Carry::sync`].
    pub async fn new(
        index: Arc<dyn Storage>,
        from: ContentStore,
        to: ContentStore,
        after: Option<&[u8]>,
    ) -> Result<Self, LibraryError> {
        if let ContentStore::Files(dir) = &to {
            let dir = dir.clone();
            let make = move || {
                std::fs::create_dir_all(&dir)
                    .map_err(|error| LibraryError::io("create the folder", &dir, error))
            };
            layout::blocking(make).await?;
        }
        let mut carry = Self::over(index, from, Some(to));
        let Some(after) = after else { return Ok(carry) };
        let read =
            after.split_first_chunk::<32>().and_then(|(id, piece)| Some((*id, piece.try_into().ok()?)));
        let Some((id, piece)) = read else {
            return Err(StorageError::corrupt("the mark of a copy names no piece").into());
        };
        let (id, piece) = (FileId::from_bytes(id), u32::from_be_bytes(piece));
        carry.at = Some((id, piece));
        while let Some(wanted) = carry.plan.next().await? {
            if wanted.id < id {
                continue;
            }
            let skipped = if wanted.id == id { Some(piece) } else { None };
            carry.begin(wanted, skipped).await?;
            break;
        }
        Ok(carry)
    }

    /// Reads and proves what this index claims, without carrying it anywhere.
    pub fn proof(index: Arc<dyn Storage>, of: ContentStore) -> Self {
        Self::over(index, of, None)
    }

    fn over(index: Arc<dyn Storage>, from: ContentStore, to: Option<ContentStore>) -> Self {
        let plan = Plan::new(&index, &from);
        let buffers = BufferPool::new(KEPT_BUFFERS);
        Self { index, from, to, plan, current: None, ready: None, at: None, buffers }
    }

    async fn begin(&mut self, wanted: Wanted, after: Option<u32>) -> Result<(), LibraryError> {
        let manifest = Arc::new(load_manifest(&*self.index, &wanted.id, wanted.layout).await?);
        let pieces = wanted.pieces().filter(|piece| after.is_none_or(|after| piece.get() > after)).collect();
        self.current = Some((manifest, wanted, pieces));
        Ok(())
    }

    /// Carries a few pieces on; none when there are no more. It may be that nothing of a step was there, where the
    /// index does not claim it.
    ///
    /// # Errors
    /// [`LibraryError::MissingPiece`] and [`LibraryError::Damaged`] where the source is not what its index claims.
    pub async fn step(&mut self) -> Result<Option<Pieces>, LibraryError> {
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None => self.read().await?,
        };
        let Some(last) = ready.last() else { return Ok(None) };
        let at = (last.manifest.id(), last.piece.get());
        let here = ready.iter().filter_map(|one| one.content.as_ref());
        let pieces =
            Pieces { count: here.clone().count() as u64, bytes: here.map(|one| one.len() as u64).sum() };
        match self.to.clone() {
            // The next ones are read while these are written.
            Some(to) => {
                let (written, next) = tokio::join!(write(&to, ready), self.read());
                written?;
                self.ready = Some(next?);
            }
            None => drop(ready),
        }
        self.at = Some(at);
        Ok(Some(pieces))
    }

    /// Returns when everything that was carried so far survives a power cut in the target, and says where that is.
    pub async fn sync(&self) -> Result<Option<Vec<u8>>, LibraryError> {
        match &self.to {
            Some(ContentStore::Database(content)) => content.sync().await?,
            Some(ContentStore::Files(dir)) => {
                let dir = dir.clone();
                layout::blocking(move || content_files::sync_all_of(&dir)).await?;
            }
            None => {}
        }
        Ok(self.at.map(|(id, piece)| [id.as_bytes(), &piece.to_be_bytes()[..]].concat()))
    }

    /// Reads the next pieces and proves them.
    async fn read(&mut self) -> Result<Vec<Proven>, LibraryError> {
        let mut chosen: Vec<Read> = Vec::new();
        let mut bytes = 0;
        while bytes < STEP_BYTES && chosen.len() < STEP_PIECES {
            let Some((manifest, wanted, pieces)) = &mut self.current else {
                let Some(wanted) = self.plan.next().await? else { break };
                self.begin(wanted, None).await?;
                continue;
            };
            let Some(piece) = pieces.pop_front() else {
                self.current = None;
                continue;
            };
            bytes += wanted.layout.len(piece);
            let sure = wanted.is_sure(piece);
            chosen.push(Read { manifest: Arc::clone(manifest), piece, sure, content: None });
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
                let (dir, buffers) = (dir.clone(), self.buffers.clone());
                layout::blocking(move || read_files(&dir, chosen, &buffers)).await?
            }
        };
        let (proven, wrong) = layout::blocking(move || Ok(prove(read))).await?;
        for (id, piece, damaged) in wrong {
            // What is being removed need not be there.
            if self.index.get(TOMBS, &[layout::id_key(&id)]).await?.iter().any(Option::is_some) {
                continue;
            }
            return Err(match damaged {
                true => LibraryError::Damaged { id, piece },
                false => LibraryError::MissingPiece { id, piece },
            });
        }
        Ok(proven)
    }
}

/// What is right of the pieces, and what is claimed and is not: its file, its number, and whether it is there.
fn prove(read: Vec<Read>) -> (Vec<Proven>, Vec<(FileId, u32, bool)>) {
    let mut wrong = Vec::new();
    let prove = |Read { manifest, piece, sure, content }: Read| {
        let there = content.is_some();
        let content = content.filter(|content| manifest.piece_is(piece, content));
        if content.is_none() && sure {
            wrong.push((manifest.id(), piece.get(), there));
        }
        Proven { manifest, piece, content }
    };
    (read.into_iter().map(prove).collect(), wrong)
}

fn read_files(dir: &Path, mut chosen: Vec<Read>, buffers: &BufferPool) -> Result<Vec<Read>, LibraryError> {
    let mut open: Option<(FileId, ContentFile)> = None;
    for one in &mut chosen {
        let id = one.manifest.id();
        if open.as_ref().is_none_or(|(opened, _)| *opened != id) {
            let path = content_files::path_of(dir, &id);
            open = match std::fs::File::open(&path) {
                Ok(file) => Some((id, ContentFile::new(path, file))),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(LibraryError::io("open", &path, error)),
            };
        }
        if let Some((_, file)) = &open {
            one.content = file.read(one.manifest.layout(), one.piece, buffers)?;
        }
    }
    Ok(chosen)
}

async fn write(to: &ContentStore, pieces: Vec<Proven>) -> Result<(), LibraryError> {
    match to {
        ContentStore::Database(content) => {
            let here =
                pieces.iter().filter_map(|one| Some((one.manifest.id(), one.piece, one.content.as_ref()?)));
            let here: Vec<(FileId, PieceIndex, &Bytes)> = here.collect();
            let here = here.iter().map(|(id, piece, content)| (id, piece.get(), *content));
            DatabaseContent(Arc::clone(content)).put(here).await
        }
        ContentStore::Files(dir) => {
            let dir = dir.clone();
            layout::blocking(move || {
                let mut open: Option<(FileId, ContentFile)> = None;
                for one in pieces {
                    let Some(content) = one.content else { continue };
                    let id = one.manifest.id();
                    let file = match open.take() {
                        Some((opened, file)) if opened == id => file,
                        _ => ContentFile::open(&dir, &id)?,
                    };
                    file.write(one.manifest.layout(), one.piece, &content)?;
                    open = Some((id, file));
                }
                Ok(())
            })
            .await
        }
    }
}

/// What an index claims of the content in a store, and what may have been written beyond that.
pub async fn claimed(index: &Arc<dyn Storage>, store: &ContentStore) -> Result<Pieces, LibraryError> {
    let mut plan = Plan::new(index, store);
    let mut pieces = Pieces::default();
    while let Some(wanted) = plan.next().await? {
        match &wanted.sure {
            None => {
                pieces.count += u64::from(wanted.layout.count());
                pieces.bytes += wanted.layout.size();
            }
            Some(_) => {
                for piece in wanted.pieces() {
                    pieces.count += 1;
                    pieces.bytes += wanted.layout.len(piece) as u64;
                }
            }
        }
    }
    Ok(pieces)
}

/// Whether a store holds what was carried there, by number and size: this many pieces in a database, and in plain files
/// each file as far as the index claims it.
pub async fn is_held(
    index: &Arc<dyn Storage>,
    store: &ContentStore,
    carried: Pieces,
) -> Result<bool, LibraryError> {
    match store {
        ContentStore::Database(content) => {
            let mut found = Pieces::default();
            let mut last: Option<Bytes> = None;
            for space in content::SPACES {
                let mut walk = Walk::new(&**content, *space);
                while let Some((key, value)) = walk.next().await? {
                    let key = key.into_bytes();
                    let piece = key.slice(..key.len().min(36));
                    if last.as_ref() != Some(&piece) {
                        found.count += 1;
                        last = Some(piece);
                    }
                    found.bytes += value.len() as u64;
                }
            }
            Ok(found == carried)
        }
        ContentStore::Files(dir) => {
            let mut plan = Plan::new(index, store);
            while let Some(wanted) = plan.next().await? {
                let sure = wanted.pieces().filter(|piece| wanted.is_sure(*piece));
                let Some(last) = sure.last() else { continue };
                let end = wanted.layout.offset(last) + wanted.layout.len(last) as u64;
                let path = content_files::path_of(dir, &wanted.id);
                let size =
                    layout::blocking(move || Ok(std::fs::metadata(path).map_or(0, |found| found.size())));
                if size.await? < end {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// Names what an index claims of content: another value after any change of that.
pub async fn state_of(index: &dyn Storage) -> Result<[u8; 32], StorageError> {
    let mut hasher = blake3::Hasher::new();
    for space in [FILES, HAVE, DIRTY] {
        hash_entries(index, space, &mut hasher).await?;
        hasher.update(&[0xff; 8]);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// The record of an index once the content is in this store; other values stay as they are.
pub fn placed(store: &ContentStore, space: Space, key: &Key, value: Bytes) -> Result<Bytes, StorageError> {
    if space != FILES && space != TOMBS {
        return Ok(value);
    }
    let (id, _) = layout::split_id(space, key)?;
    let mut record = Record::decode(&id, &value)?;
    let place = place_in(store);
    if matches!(record.place, Place::Linked { .. }) || record.place == place {
        return Ok(value);
    }
    record.place = place;
    Ok(record.encode())
}

/// Whether a store has no content.
pub async fn is_empty(store: &ContentStore) -> Result<bool, LibraryError> {
    match store {
        ContentStore::Database(content) => Ok(are_empty(&**content, content::SPACES).await?),
        ContentStore::Files(dir) => {
            let dir = dir.clone();
            layout::blocking(move || Ok(content_files::list(&dir)?.is_empty())).await
        }
    }
}

/// Removes all content of a store.
pub async fn empty(store: &ContentStore) -> Result<(), LibraryError> {
    match store {
        ContentStore::Database(content) => Ok(empty_spaces(&**content, content::SPACES, None).await?),
        ContentStore::Files(dir) => {
            let dir = dir.clone();
            layout::blocking(move || {
                content_files::list(&dir)?.iter().try_for_each(|id| content_files::remove(&dir, id))
            })
            .await
        }
    }
}
