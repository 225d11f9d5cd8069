//! One file of the library, shared by everybody who reads or fills it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::entry::Location;
use super::error::LibraryError;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::manifest::Manifest;
use crate::model::record::FileKind;

/// An open file.
#[derive(Debug)]
pub struct LibraryFile {
    manifest: Arc<Manifest>,
    kind: FileKind,
    progress: watch::Sender<u32>,
}

impl LibraryFile {
    /// Its id.
    pub fn id(&self) -> FileId {
        self.manifest.id()
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Its pieces.
    pub fn layout(&self) -> PieceLayout {
        self.manifest.layout()
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Where its content is.
    pub fn location(&self) -> Location {
        Location::Database
    }

    /// The pieces that are here.
    pub fn have(&self) -> Bitmap {
        Bitmap::empty(self.layout())
    }

    /// Whether the piece is here.
    pub fn has(&self, _piece: PieceIndex) -> bool {
        false
    }

    /// How many pieces are here.
    pub fn have_count(&self) -> u32 {
        0
    }

    /// Whether every piece is here. [`Self::finish`] is still to be called by whoever fills it.
    pub fn is_complete(&self) -> bool {
        false
    }

    /// Whether nothing is left to do: every piece is here and a file of the user has its name.
    pub fn is_finished(&self) -> bool {
        false
    }

    /// The number of pieces that are here, as it changes.
    pub fn progress(&self) -> watch::Receiver<u32> {
        self.progress.subscribe()
    }

    /// Reads a piece that is here.
    ///
    /// # Errors
    /// [`LibraryError::MissingPiece`] where it is not here, [`LibraryError::Changed`] where a linked file is another
    /// one by now, [`LibraryError::Damaged`] where what was kept is wrong.
    pub async fn read_piece(self: &Arc<Self>, _piece: PieceIndex) -> Result<Bytes, LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Keeps pieces that the caller has verified; those that are here already are passed over. On return they
    /// survive a crash of the process and can be read. A sync follows in the background. Dropping the future
    /// leaves the pieces of the call either kept or not kept.
    pub async fn write_pieces(
        self: &Arc<Self>,
        _pieces: Vec<(PieceIndex, Bytes)>,
    ) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Makes what was written so far durable.
    pub async fn checkpoint(self: &Arc<Self>) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Completes a file of which every piece is here: a file of the user gets its name. With `durable` the file
    /// survives a power cut on return; else soon after, and until then a crash of the process.
    pub async fn finish(self: &Arc<Self>, _durable: bool) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }
}
