//! Content that belongs to the library, in a database of its own or in plain files.
//!
//! In the database a piece is cut into parts of the largest value that the backend holds, under the key
//! id (32 bytes), piece (4), part (2), in the space `content`.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::error::LibraryError;
use super::layout::split_id;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::storage::Storage;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

const CONTENT: Space = Space::new("content");
/// Every space of a storage opened for content.
pub const SPACES: &[Space] = &[CONTENT];
/// The number of the only piece of a small file.
const ONLY: u32 = 0;
/// About how many bytes are deleted in one commit: reads may have to wait for it.
const DELETE_BATCH: usize = 64 * 1024 * 1024;

/// Where the library keeps content that is its own.
#[derive(Debug, Clone)]
pub enum ContentStore {
    /// In a storage opened for [`crate::storage::Role::Content`].
    Database(Arc<dyn Storage>),
    /// In plain files `DIR/<first 2 digits of the id>/<id>`.
    Files(PathBuf),
}

/// The content of files in a database.
#[derive(Debug, Clone)]
pub(super) struct DatabaseContent(pub(super) Arc<dyn Storage>);

fn part_key(id: &FileId, piece: u32, part: u16) -> Key {
    let key = [id.as_bytes(), &piece.to_be_bytes()[..], &part.to_be_bytes()].concat();
    Key::new(key).expect("the key of a part has 38 bytes")
}

impl DatabaseContent {
    /// Into how many parts so many bytes are cut.
    fn parts(&self, len: usize) -> u16 {
        // A piece has at most 4 MiB and a value holds at least 32 KiB, so there are at most 128.
        len.div_ceil(self.0.limits().max_value) as u16
    }

    pub(super) async fn write(
        &self,
        id: &FileId,
        pieces: &[(PieceIndex, Bytes)],
    ) -> Result<(), LibraryError> {
        self.put(pieces.iter().map(|(piece, content)| (id, piece.get(), content))).await
    }

    /// Writes whole files of one piece or none, with as few commits as they fit in.
    pub(super) async fn write_small(&self, files: &[(FileId, Bytes)]) -> Result<(), LibraryError> {
        self.put(files.iter().map(|(id, content)| (id, ONLY, content))).await
    }

    /// Writes pieces, given by file and number, with as few commits as they fit in.
    pub(super) async fn put<'a>(
        &self,
        pieces: impl Iterator<Item = (&'a FileId, u32, &'a Bytes)> + Send,
    ) -> Result<(), LibraryError> {
        let limits = self.0.limits();
        let (mut batch, mut size) = (Batch::new(), 0);
        for (id, piece, content) in pieces {
            for part in 0..self.parts(content.len()) {
                let start = usize::from(part) * limits.max_value;
                let value = content.slice(start..content.len().min(start + limits.max_value));
                let key = part_key(id, piece, part);
                let added = key.as_bytes().len() + value.len();
                if size + added > limits.max_batch {
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

    /// The content of files of one piece, given their lengths; `None` where it is not there, or is cut otherwise.
    pub(super) async fn read_small(
        &self,
        files: &[(FileId, usize)],
    ) -> Result<Vec<Option<Bytes>>, LibraryError> {
        let keys: Vec<Key> = files
            .iter()
            .flat_map(|(id, len)| (0..self.parts(*len)).map(|part| part_key(id, ONLY, part)))
            .collect();
        let mut values = self.0.get(CONTENT, &keys).await?.into_iter();
        let read = files.iter().map(|(_, len)| {
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

    /// The piece, or `None` where parts of it are not there.
    pub(super) async fn read(
        &self,
        id: &FileId,
        layout: PieceLayout,
        piece: PieceIndex,
    ) -> Result<Option<Bytes>, LibraryError> {
        let len = layout.len(piece);
        let keys: Vec<Key> = (0..self.parts(len)).map(|part| part_key(id, piece.get(), part)).collect();
        let mut values = self.0.get(CONTENT, &keys).await?;
        if let [Some(only)] = values.as_mut_slice()
            && only.len() == len
        {
            return Ok(Some(std::mem::take(only)));
        }
        let found: usize = values.iter().flatten().map(Bytes::len).sum();
        if found != len || values.iter().any(Option::is_none) {
            return self.read_other_cut(id, piece, len).await;
        }
        let mut content = BytesMut::with_capacity(len);
        values.iter().flatten().for_each(|part| content.extend_from_slice(part));
        Ok(Some(content.freeze()))
    }

    /// Reads a piece that was written when the backend held larger or smaller values.
    async fn read_other_cut(
        &self,
        id: &FileId,
        piece: PieceIndex,
        len: usize,
    ) -> Result<Option<Bytes>, LibraryError> {
        let prefix = [id.as_bytes(), &piece.get().to_be_bytes()[..]].concat();
        let mut range = KeyRange::prefix(&prefix);
        let mut content = BytesMut::with_capacity(len);
        loop {
            let page = self.0.scan(CONTENT, range.clone(), 16).await?;
            let Some((last, _)) = page.last() else { return Ok(None) };
            range = range.after(last);
            for (_, part) in &page {
                content.extend_from_slice(part);
                if content.len() >= len {
                    return Ok((content.len() == len).then(|| content.freeze()));
                }
            }
        }
    }

    /// Removes every piece of a file. The values are not read where the layout is known and they are cut as now.
    pub(super) async fn remove(&self, id: &FileId, layout: Option<PieceLayout>) -> Result<(), LibraryError> {
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
        loop {
            let page = self.0.scan(CONTENT, KeyRange::prefix(id.as_bytes()), 64).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for (key, _) in page {
                batch.delete(CONTENT, key);
            }
            self.0.commit(batch, Durability::Buffered).await?;
        }
    }

    /// The first file with content behind `after`.
    pub(super) async fn next_id(&self, after: Option<&FileId>) -> Result<Option<FileId>, LibraryError> {
        let start = match after {
            // Behind every piece and part of it.
            Some(id) => Bound::Excluded([id.as_bytes(), &[0xff; 7][..]].concat().into()),
            None => Bound::Unbounded,
        };
        let page = self.0.scan(CONTENT, KeyRange { start, end: Bound::Unbounded }, 1).await?;
        page.first().map(|(key, _)| Ok(split_id(CONTENT, key)?.0)).transpose()
    }
}
