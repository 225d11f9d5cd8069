//! Tests of the library over memory storages, with content in a database and in plain files.

mod collections;
mod content_copy;
mod linked;
mod missing_content;
mod model;
mod open_cache;
mod piece_writer;
mod pieces;
#[cfg(target_os = "linux")]
mod pipes;
mod relink;
mod republish;
mod retarget;
mod small;
mod temporary;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::content::ContentStore;
use super::content_files::StoredPiece;
use super::entry::NewFile;
use super::file::LibraryFile;
use super::library::Library;
use super::output::Destination;
use enjambre_core::model::manifest::hash_piece;
use enjambre_core::storage::memory::Disk;
use enjambre_core::{FileId, FileKind, Manifest, PieceIndex, PieceLayout, Storage};

pub(super) const PIECE: usize = 256 << 10;

/// The disks of a peer. They outlive its library.
pub(super) struct Rig {
    pub(super) index: Disk,
    pub(super) content: Disk,
    pub(super) dir: TempDir,
    pub(super) in_files: bool,
}

impl Rig {
    pub(super) fn new(in_files: bool) -> Self {
        Self { index: Disk::new(), content: Disk::new(), dir: TempDir::new().unwrap(), in_files }
    }

    pub(super) fn store(&self) -> ContentStore {
        match self.in_files {
            true => ContentStore::Files(self.path("content")),
            false => ContentStore::Database(Arc::new(self.content.open())),
        }
    }

    pub(super) async fn open(&self) -> Arc<Library> {
        self.open_on(Arc::new(self.index.open())).await
    }

    pub(super) async fn open_on(&self, index: Arc<dyn Storage>) -> Arc<Library> {
        Library::open(index, self.store()).await.unwrap()
    }

    /// Stops the library like a kill of its process, and waits until it has closed its files.
    pub(super) async fn kill(&self, library: Arc<Library>) {
        library.inner.stop.cancel();
        library.tasks.wait().await;
    }

    /// A path in the directory of the user.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn to(&self, name: &str, force: bool) -> Destination {
        Destination::Path { path: self.path(name), executable: false, force }
    }
}

#[derive(Clone)]
pub(super) struct Sample {
    pub(super) content: Bytes,
    pub(super) manifest: Manifest,
}

impl Sample {
    pub(super) fn new(len: usize, seed: u8) -> Self {
        let mut content = vec![0; len];
        let mut reader = blake3::Hasher::new().update(&[seed]).finalize_xof();
        reader.fill(&mut content);
        Self::of(content.into())
    }

    pub(super) fn of(content: Bytes) -> Self {
        let len = content.len();
        let layout = PieceLayout::new(len as u64).unwrap();
        let hashes = layout.pieces().map(|piece| hash_piece(layout, piece, &cut(&content, layout, piece)));
        let manifest = Manifest::from_hashes(layout, hashes.collect()).unwrap();
        Self { content, manifest }
    }

    pub(super) fn id(&self) -> FileId {
        self.manifest.id()
    }

    pub(super) fn layout(&self) -> PieceLayout {
        self.manifest.layout()
    }

    pub(super) fn piece(&self, number: u32) -> (PieceIndex, Bytes) {
        let piece = self.layout().piece(number).unwrap();
        (piece, cut(&self.content, self.layout(), piece))
    }

    pub(super) fn all(&self) -> Vec<(PieceIndex, Bytes)> {
        (0..self.layout().count()).map(|number| self.piece(number)).collect()
    }

    /// Pieces to write to a content store.
    pub(super) fn stored(&self, pieces: Vec<(PieceIndex, Bytes)>) -> Vec<StoredPiece> {
        let stored = |(piece, content)| StoredPiece::new(self.id(), self.layout(), piece, content);
        pieces.into_iter().map(stored).collect()
    }

    pub(super) async fn create(&self, library: &Library, name: &str, to: Destination) -> Arc<LibraryFile> {
        library.create(self.manifest.clone(), named(name), to).await.unwrap()
    }

    /// Checks that every stored piece is readable and valid.
    pub(super) async fn check(&self, file: &Arc<LibraryFile>) {
        for (piece, content) in self.all() {
            if file.has(piece) {
                assert_eq!(file.read_piece(piece).await.unwrap(), content, "{piece:?}");
            }
        }
    }
}

fn cut(content: &Bytes, layout: PieceLayout, piece: PieceIndex) -> Bytes {
    let start = layout.offset(piece) as usize;
    content.slice(start..start + layout.len(piece))
}

pub(super) fn named(name: &str) -> NewFile {
    NewFile { name: Some(name.parse().unwrap()), kind: FileKind::File, member_of: None }
}
