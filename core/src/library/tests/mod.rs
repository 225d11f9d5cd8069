//! The library over the storage in memory, with content in a database and in files.

mod carry;
mod collections;
mod held;
mod keeping;
mod links;
mod model;
mod pieces;
mod published;
mod small;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::content::ContentStore;
use super::entry::NewFile;
use super::file::LibraryFile;
use super::library::Library;
use super::output::Destination;
use super::settings::LibrarySettings;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::manifest::{Manifest, hash_piece};
use crate::model::record::FileKind;
use crate::storage::Storage;
use crate::storage::memory::Disk;

pub(super) const PIECE: usize = 256 << 10;

/// The disks of a peer, which outlive its library.
pub(super) struct Rig {
    pub(super) index: Disk,
    pub(super) content: Disk,
    pub(super) folder: TempDir,
    pub(super) in_files: bool,
}

impl Rig {
    pub(super) fn new(in_files: bool) -> Self {
        Self { index: Disk::new(), content: Disk::new(), folder: TempDir::new().unwrap(), in_files }
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
        Library::open(index, self.store(), LibrarySettings::default()).await.unwrap()
    }

    /// Drops the library as a kill of its process does, and waits until it let go of its files.
    pub(super) async fn kill(&self, library: Arc<Library>) {
        library.shared.stop.cancel();
        library.tasks.wait().await;
    }

    /// A path in the user's folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn to(&self, name: &str, force: bool) -> Destination {
        Destination::Path { path: self.path(name), force }
    }
}

/// A file in memory.
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
        let content = Bytes::from(content);
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

    pub(super) async fn create(&self, library: &Library, name: &str, to: Destination) -> Arc<LibraryFile> {
        library.create(self.manifest.clone(), named(name), to).await.unwrap()
    }

    /// Every claimed piece can be read and is right.
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
