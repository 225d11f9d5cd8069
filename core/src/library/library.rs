//! The library as a whole.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::content::ContentStore;
use super::entry::{Entry, LibraryEvent, NewFile, Publication, VerifyReport};
use super::error::LibraryError;
use super::file::LibraryFile;
use super::output::{Destination, OutputDir};
use crate::model::collection::{Collection, MemberPath};
use crate::model::id::FileId;
use crate::model::manifest::Manifest;
use crate::model::name::Name;
use crate::model::record::Offer;
use crate::storage::Storage;

/// How the library behaves.
#[derive(Debug, Clone)]
pub struct LibrarySettings {
    /// After how many bytes that were written but not synced a sync begins, in the background.
    pub checkpoint_bytes: u64,
    /// At how many such bytes writers wait for the sync.
    pub max_unsynced_bytes: u64,
}

impl Default for LibrarySettings {
    fn default() -> Self {
        Self { checkpoint_bytes: 16 << 20, max_unsynced_bytes: 64 << 20 }
    }
}

/// The files that a peer has.
#[derive(Debug)]
pub struct Library {}

impl Library {
    /// Opens the library and mends what a crash left: removals are finished, pieces that were written but not
    /// synced are hashed. What belongs to no file is swept in the background.
    pub async fn open(
        _index: Arc<dyn Storage>,
        _content: ContentStore,
        _settings: LibrarySettings,
    ) -> Result<Arc<Self>, LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Makes everything durable and ends the background work. The storages stay open.
    pub async fn close(&self) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Every file of the library, by id.
    pub fn entries(&self) -> Vec<Entry> {
        Vec::new()
    }

    /// What is known of a file.
    pub fn entry(&self, _id: &FileId) -> Option<Entry> {
        None
    }

    /// The newest file of a name, or the file of an id or of a prefix of 8 or more hexadecimal digits.
    pub fn find(&self, _query: &str) -> Result<Entry, LibraryError> {
        Err(LibraryError::Closed)
    }

    /// The files that this peer offers: those with a name of which at least one piece is here, and collections.
    pub fn offers(&self) -> Vec<Offer> {
        Vec::new()
    }

    /// Tells of every change from now on. A receiver that falls behind gets `Lagged` and asks for [`Self::offers`].
    pub fn events(&self) -> broadcast::Receiver<LibraryEvent> {
        broadcast::channel(1).1
    }

    /// The file, to read or go on writing it; `None` where the library does not know it or it was withdrawn.
    /// Everybody who has it open shares it.
    pub async fn open_file(&self, _id: &FileId) -> Result<Option<Arc<LibraryFile>>, LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Begins a file, or goes on with one that is there in part or in whole (then `destination` is not used,
    /// see [`LibraryFile::location`], and [`Self::export`] makes a further copy). Its name and collection are
    /// added to it in any case.
    ///
    /// # Errors
    /// [`LibraryError::Exists`] where a destination holds other content and `force` is not given.
    pub async fn create(
        &self,
        _manifest: Manifest,
        _new: NewFile,
        _destination: Destination,
    ) -> Result<Arc<LibraryFile>, LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Makes everything that was written so far durable, with few syncs for many files.
    pub async fn checkpoint_all(&self) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }

    /// The list of a collection that is here in whole.
    pub async fn collection(&self, _id: &FileId) -> Result<Collection, LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Removes a file, and with a collection those of its members that have no name and belong to no other.
    /// A linked file stays on the disk.
    pub async fn remove(&self, _id: &FileId) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Writes a complete file, or the directory of a collection, to a path. Every piece is verified on the way.
    /// What is there already with the same content stays.
    pub async fn export(&self, _id: &FileId, _path: &Path, _force: bool) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Writes a complete file to a path beneath a directory, as [`Self::export`].
    pub async fn export_member(
        &self,
        _id: &FileId,
        _dir: &Arc<OutputDir>,
        _path: &MemberPath,
        _executable: bool,
        _force: bool,
    ) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }

    /// Reads and hashes every piece that is here. Pieces that are wrong are no longer claimed; a linked file that
    /// was withdrawn and is right again is offered again.
    pub async fn verify(&self, _id: &FileId) -> Result<VerifyReport, LibraryError> {
        Err(LibraryError::Closed)
    }

    /// The published names that this catalogue has not acknowledged.
    pub fn pending_publications(&self, _catalogue: [u8; 16]) -> Vec<Publication> {
        Vec::new()
    }

    /// Notes that a catalogue has this name of this file.
    pub async fn mark_published(
        &self,
        _catalogue: [u8; 16],
        _id: &FileId,
        _name: &Name,
    ) -> Result<(), LibraryError> {
        Err(LibraryError::Closed)
    }
}
