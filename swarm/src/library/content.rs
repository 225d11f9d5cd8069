//! The library's own content store: a database or a directory with plain files.
//!
//! In a database each piece is split into parts of the largest value that the backend accepts. The key of a
//! part in the space `content` is id (32 bytes), piece (4), part (2).

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::content_files::{self, StoredPiece};
use super::error::Result;
use super::layout::{ContentPlace, split_id};
use super::task::blocking;
use crate::record_copy;
use enjambre_core::{
    Batch, Durability, FileId, Key, KeyRange, PieceIndex, PieceLayout, Space, Storage, StorageExt,
};

const CONTENT: Space = Space::new("content");
/// All spaces of a content database.
pub const SPACES: &[Space] = &[CONTENT];
/// The number of the only piece of a small file.
const ONLY: u32 = 0;
/// The approximate number of bytes that one commit deletes. Reads may wait for a commit.
const DELETE_BATCH: usize = 64 * 1024 * 1024;

/// The store for content that belongs to the library.
#[derive(Debug, Clone)]
pub enum ContentStore {
    /// A storage with the role [`enjambre_core::storage::Role::Content`].
    Database(Arc<dyn Storage>),
    /// Plain files `DIR/<first 2 digits of the id>/<id>`.
    Files(PathBuf),
}

impl ContentStore {
    pub(super) const fn place(&self) -> ContentPlace {
        match self {
            Self::Database(_) => ContentPlace::Database,
            Self::Files(_) => ContentPlace::Files,
        }
    }

    pub(super) async fn create(&self) -> Result<()> {
        match self {
            Self::Database(_) => Ok(()),
            Self::Files(dir) => in_dir(dir, content_files::create_dir).await,
        }
    }

    /// Writes pieces. They are durable after [`Self::sync`]. With plain files the file of an empty piece is
    /// created.
    pub(super) async fn write(&self, pieces: Vec<StoredPiece>) -> Result<()> {
        match self {
            Self::Database(content) => {
                let pieces = pieces.iter().map(|piece| (&piece.id, piece.number, &piece.content));
                DatabaseContent(Arc::clone(content)).put(pieces).await
            }
            Self::Files(dir) => in_dir(dir, move |dir| content_files::write(dir, &pieces)).await,
        }
    }

    /// Moves a complete file into the store. It is durable after [`Self::sync`]. Returns `false` if it has to be copied.
    pub(super) async fn adopt(&self, id: &FileId, file: &Path) -> Result<bool> {
        match self {
            Self::Database(_) => Ok(false),
            Self::Files(dir) => {
                let (id, file) = (*id, file.to_owned());
                in_dir(dir, move |dir| content_files::adopt(dir, &id, &file)).await
            }
        }
    }

    /// Makes everything that was written durable.
    pub(super) async fn sync(&self) -> Result<()> {
        match self {
            Self::Database(content) => Ok(content.sync().await?),
            Self::Files(dir) => in_dir(dir, content_files::sync_file_system).await,
        }
    }

    /// Removes the content of a file if it exists. With the layout a database need not scan for its keys.
    pub(super) async fn remove(&self, id: &FileId, layout: Option<PieceLayout>) -> Result<()> {
        match self {
            Self::Database(content) => DatabaseContent(Arc::clone(content)).remove(id, layout).await,
            Self::Files(dir) => {
                let id = *id;
                in_dir(dir, move |dir| content_files::remove(dir, &id)).await
            }
        }
    }

    /// Whether the store contains no content.
    pub async fn is_empty(&self) -> Result<bool> {
        match self {
            Self::Database(content) => Ok(record_copy::is_empty(&**content, SPACES).await?),
            Self::Files(dir) => in_dir(dir, content_files::is_empty).await,
        }
    }

    /// Removes all content of the store.
    pub async fn clear(&self) -> Result<()> {
        match self {
            Self::Database(content) => Ok(record_copy::empty(&**content, SPACES, None).await?),
            Self::Files(dir) => in_dir(dir, content_files::clear).await,
        }
    }
}

pub(super) async fn in_dir<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let dir = dir.to_owned();
    blocking(move || work(&dir)).await
}

#[derive(Debug, Clone)]
pub(super) struct DatabaseContent(pub(super) Arc<dyn Storage>);

fn part_key(id: &FileId, piece: u32, part: u16) -> Key {
    let key = [id.as_bytes(), &piece.to_be_bytes()[..], &part.to_be_bytes()].concat();
    Key::new(key).expect("the key of a part has 38 bytes")
}

impl DatabaseContent {
    fn parts(&self, len: usize) -> u16 {
        // A piece has at most 4 MiB and a value at least 32 KiB, so there are at most 128 parts.
        len.div_ceil(self.0.limits().max_value) as u16
    }

    /// Writes pieces, given by file and number, with as few commits as possible.
    pub(super) async fn put<'a>(
        &self,
        pieces: impl Iterator<Item = (&'a FileId, u32, &'a Bytes)> + Send,
    ) -> Result<()> {
        let limits = self.0.limits();
        let (mut batch, mut size) = (Batch::new(), 0);
        for (id, piece, content) in pieces {
            for part in 0..self.parts(content.len()) {
                let start = usize::from(part) * limits.max_value;
                let value = content.slice(start..content.len().min(start + limits.max_value));
                let key = part_key(id, piece, part);
                let added = key.as_bytes().len() + value.len();
                if size + added > limits.max_batch || batch.writes.len() == limits.max_writes {
                    self.0.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
                    size = 0;
                }
                size += added;
                batch.put(CONTENT, key, value);
            }
        }
        if !batch.is_empty() {
            self.0.commit(batch, Durability::Buffered).await?;
        }
        Ok(())
    }

    /// Reads pieces, given by file, number and length. A piece is `None` if it is missing or split differently.
    async fn read_pieces(&self, pieces: &[(FileId, u32, usize)]) -> Result<Vec<Option<Bytes>>> {
        let keys: Vec<Key> = pieces
            .iter()
            .flat_map(|(id, piece, len)| (0..self.parts(*len)).map(|part| part_key(id, *piece, part)))
            .collect();
        let mut values = self.0.get(CONTENT, &keys).await?.into_iter();
        let read = pieces.iter().map(|(.., len)| {
            let mut parts: Vec<Option<Bytes>> = values.by_ref().take(usize::from(self.parts(*len))).collect();
            let content = match parts.as_mut_slice() {
                [only] => only.take(),
                parts => {
                    parts.iter().cloned().collect::<Option<Vec<Bytes>>>().map(|parts| parts.concat().into())
                }
            };
            content.filter(|content| content.len() == *len)
        });
        Ok(read.collect())
    }

    /// Reads files with one piece, given their lengths. A file is `None` if it is missing or split
    /// differently.
    pub(super) async fn read_small(&self, files: &[(FileId, usize)]) -> Result<Vec<Option<Bytes>>> {
        let pieces: Vec<_> = files.iter().map(|(id, len)| (*id, ONLY, *len)).collect();
        self.read_pieces(&pieces).await
    }

    /// Reads a piece, or returns `None` if parts of it are missing.
    pub(super) async fn read(
        &self,
        id: &FileId,
        layout: PieceLayout,
        piece: PieceIndex,
    ) -> Result<Option<Bytes>> {
        let len = layout.len(piece);
        match self.read_pieces(&[(*id, piece.get(), len)]).await?.pop().flatten() {
            Some(content) => Ok(Some(content)),
            None => self.read_differently_split(id, piece, len).await,
        }
    }

    /// Reads a piece that was written when the largest value of the backend had another size.
    async fn read_differently_split(
        &self,
        id: &FileId,
        piece: PieceIndex,
        len: usize,
    ) -> Result<Option<Bytes>> {
        let prefix = [id.as_bytes(), &piece.get().to_be_bytes()[..]].concat();
        let mut parts = self.0.entries(CONTENT, KeyRange::prefix(&prefix), 16);
        let mut content = BytesMut::with_capacity(len);
        while let Some((_, part)) = parts.next().await? {
            content.extend_from_slice(&part);
            if content.len() >= len {
                return Ok((content.len() == len).then(|| content.freeze()));
            }
        }
        Ok(None)
    }

    /// Removes every piece of a file. With the layout, values that are split as expected are not read.
    pub(super) async fn remove(&self, id: &FileId, layout: Option<PieceLayout>) -> Result<()> {
        if let Some(layout) = layout {
            let most = (DELETE_BATCH / self.0.limits().max_value).clamp(16, 2048);
            let mut batch = Batch::new();
            for piece in layout.pieces() {
                for part in 0..self.parts(layout.len(piece)) {
                    batch.delete(CONTENT, part_key(id, piece.get(), part));
                    if batch.writes.len() == most {
                        self.0.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
                    }
                }
            }
            if !batch.is_empty() {
                self.0.commit(batch, Durability::Buffered).await?;
            }
        }
        let mut pages = self.0.pages(CONTENT, KeyRange::prefix(id.as_bytes()), 64);
        while let Some(page) = pages.next().await? {
            let mut batch = Batch::new();
            for (key, _) in page {
                batch.delete(CONTENT, key);
            }
            self.0.commit(batch, Durability::Buffered).await?;
        }
        Ok(())
    }

    /// Returns the first file with content whose id is greater than `after`.
    pub(super) async fn next_id(&self, after: Option<&FileId>) -> Result<Option<FileId>> {
        let start = match after {
            // Greater than every piece and part of the file.
            Some(id) => Bound::Excluded([id.as_bytes(), &[0xff; 7][..]].concat().into()),
            None => Bound::Unbounded,
        };
        let page = self.0.scan(CONTENT, KeyRange { start, end: Bound::Unbounded }, 1).await?;
        page.first().map(|(key, _)| Ok(split_id(CONTENT, key)?.0)).transpose()
    }
}
