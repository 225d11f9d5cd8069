//! Copying published content into the library.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;

use super::hash::Hashed;
use super::scan::FoundFile;
use super::{PublishError, publish_blocking};
use crate::library::content_files::StoredPiece;
use crate::library::error::Result;
use crate::library::inner::LibraryInner;
use crate::library::linked::open_regular;
use enjambre_core::model::manifest::hash_piece;
use enjambre_core::{Collection, CollectionError, FileId, Manifest, PieceIndex, PieceLayout};

/// The number of bytes that are copied into the library at once.
const COPY_BYTES: usize = 8 << 20;

pub(super) struct EncodedCollection {
    pub(super) manifest: Manifest,
    content: Bytes,
}

impl EncodedCollection {
    pub(super) fn new(collection: &Collection) -> Result<Self, CollectionError> {
        let content: Bytes = collection.encode().into();
        let layout = PieceLayout::new(content.len() as u64).map_err(|_| CollectionError::TooLarge)?;
        let hash = |piece| hash_piece(layout, piece, &slice(&content, layout, piece));
        let hashes = layout.pieces().map(hash).collect();
        let manifest = Manifest::from_hashes(layout, hashes).map_err(|_| CollectionError::TooLarge)?;
        Ok(Self { manifest, content })
    }
}

fn slice(content: &Bytes, layout: PieceLayout, piece: PieceIndex) -> Bytes {
    let start = layout.offset(piece) as usize;
    content.slice(start..start + layout.len(piece))
}

/// Where the content of published files goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// It stays where it is.
    Linked,
    /// A copy of it is in the library's store.
    Copied,
    /// The files become part of the library's store, or copies of them.
    Moved,
}

/// The imports of one publication. The imported content is protected from the sweep until this is dropped.
pub(super) struct Imports {
    inner: Arc<LibraryInner>,
    ids: BTreeSet<FileId>,
}

impl Imports {
    pub(super) const fn new(inner: Arc<LibraryInner>) -> Self {
        Self { inner, ids: BTreeSet::new() }
    }

    /// Begins the import of a file. Returns whether its content has to be copied.
    async fn begin(&mut self, id: FileId) -> Result<bool> {
        if self.ids.contains(&id) {
            return Ok(false);
        }
        let missing = self.inner.begin_import(&id).await?;
        self.ids.insert(id);
        Ok(missing)
    }

    /// Adds the encoded collection and, unless they are linked, the hashed files to the store of the library. They are
    /// durable on return.
    pub(super) async fn import(
        &mut self,
        files: &[FoundFile],
        hashed: &[Hashed],
        collection: Option<&EncodedCollection>,
        placement: Placement,
    ) -> Result<(), PublishError> {
        let stored: &[FoundFile] = if placement == Placement::Linked { &[] } else { files };
        for (file, hashed) in stored.iter().zip(hashed) {
            let Some((manifest, _)) = &hashed.new else { continue };
            if !self.begin(hashed.id).await? {
                continue;
            }
            let moved =
                placement == Placement::Moved && self.inner.content.adopt(&hashed.id, &file.path).await?;
            if !moved {
                self.import_file(&file.path, manifest).await?;
            }
        }
        if let Some(EncodedCollection { manifest, content }) = collection
            && self.begin(manifest.id()).await?
        {
            let layout = manifest.layout();
            for piece in layout.pieces() {
                self.write(vec![StoredPiece::new(
                    manifest.id(),
                    layout,
                    piece,
                    slice(content, layout, piece),
                )])
                .await?;
            }
        }
        if !self.ids.is_empty() {
            self.inner.content.sync().await?;
        }
        Ok(())
    }

    async fn write(&self, pieces: Vec<StoredPiece>) -> Result<()> {
        self.inner.check_open()?;
        self.inner.content.write(pieces).await
    }

    /// Copies a file into the library. Since the file is read again, it is verified again.
    async fn import_file(&self, path: &Path, manifest: &Manifest) -> Result<(), PublishError> {
        let manifest = Arc::new(manifest.clone());
        let opened = path.to_owned();
        let file = Arc::new(publish_blocking(move || Ok(open_regular(&opened, OFlags::NOFOLLOW)?.0)).await?);
        let pieces: Vec<PieceIndex> = manifest.layout().pieces().collect();
        for some in pieces.chunks((COPY_BYTES / manifest.layout().piece_size() as usize).max(1)) {
            let (some, file, verified) = (some.to_vec(), Arc::clone(&file), Arc::clone(&manifest));
            let source = path.to_owned();
            let pieces = publish_blocking(move || {
                let mut read = Vec::with_capacity(some.len());
                for piece in some {
                    let mut content = vec![0; verified.layout().len(piece)];
                    let complete = file.read_exact_at(&mut content, verified.layout().offset(piece)).is_ok();
                    if !complete || !verified.piece_is(piece, &content) {
                        return Err(PublishError::Changed(source));
                    }
                    read.push(StoredPiece::new(verified.id(), verified.layout(), piece, content.into()));
                }
                Ok(read)
            })
            .await?;
            self.write(pieces).await?;
        }
        Ok(())
    }

    /// Removes the content of files that get no record. Otherwise it would use disk space until the next
    /// start.
    pub(super) async fn discard(mut self) {
        for id in std::mem::take(&mut self.ids) {
            if let Err(error) = self.inner.discard_import(&id).await {
                tracing::warn!(%id, %error, "removing imported content failed; retrying at the next start");
            }
        }
    }
}

impl Drop for Imports {
    fn drop(&mut self) {
        for id in &self.ids {
            self.inner.state.lock().end_import(id);
        }
    }
}
