//! Content in plain files: positioned reads and writes, and syncs of many files at once. Everything here blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::LibraryError;
use crate::buffers::BufferPool;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};

/// From how many files on one sync of the whole file system is cheaper than one for each.
const SYNC_ONE_BY_ONE: usize = 16;

/// An open file that the library fills or reads.
#[derive(Debug)]
pub(super) struct ContentFile {
    path: PathBuf,
    file: Arc<File>,
    /// Held while a piece is written. The system lets one write to a file at a time, and the others spin meanwhile,
    /// at the cost of those who could hash.
    writing: Mutex<()>,
}

impl ContentFile {
    pub(super) fn new(path: PathBuf, file: File) -> Self {
        Self { path, file: Arc::new(file), writing: Mutex::new(()) }
    }

    /// Opens the file of an id beneath the folder, which is created where it is missing.
    pub(super) fn open(dir: &Path, id: &FileId) -> Result<Self, LibraryError> {
        let path = path_of(dir, id);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| LibraryError::io("create the folder", parent, error))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| LibraryError::io("open", &path, error))?;
        Ok(Self::new(path, file))
    }

    pub(super) const fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The piece, or `None` where the file ends before it does.
    pub(super) fn read(
        &self,
        layout: PieceLayout,
        piece: PieceIndex,
        buffers: &BufferPool,
    ) -> Result<Option<Bytes>, LibraryError> {
        let mut content = buffers.take(layout.len(piece));
        match self.file.read_exact_at(&mut content, layout.offset(piece)) {
            Ok(()) => Ok(Some(content.freeze())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(LibraryError::io("read", &self.path, error)),
        }
    }

    pub(super) fn write(
        &self,
        layout: PieceLayout,
        piece: PieceIndex,
        content: &[u8],
    ) -> Result<(), LibraryError> {
        let _turn = self.writing.lock();
        self.file
            .write_all_at(content, layout.offset(piece))
            .map_err(|error| LibraryError::io("write", &self.path, error))
    }

    /// Takes the room for the whole file, where the file system can.
    pub(super) fn preallocate(&self, size: u64) -> Result<(), LibraryError> {
        #[cfg(target_os = "linux")]
        if size > 0 {
            use rustix::io::Errno;
            match rustix::fs::fallocate(&*self.file, rustix::fs::FallocateFlags::empty(), 0, size) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR | Errno::INVAL) => {}
                Err(error) => return Err(LibraryError::io("make room for", &self.path, error.into())),
            }
        }
        let _ = size;
        Ok(())
    }
}

/// Where the content of a file lies.
pub(super) fn path_of(dir: &Path, id: &FileId) -> PathBuf {
    let name = id.to_string();
    dir.join(&name[..2]).join(name)
}

/// Removes the content of a file, if there is any.
pub(super) fn remove(dir: &Path, id: &FileId) -> Result<(), LibraryError> {
    remove_file(&path_of(dir, id))
}

pub(super) fn remove_file(path: &Path) -> Result<(), LibraryError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LibraryError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// The ids of all files beneath the folder that look like content.
pub(super) fn list(dir: &Path) -> Result<Vec<FileId>, LibraryError> {
    let mut ids = Vec::new();
    for first in 0..=255u8 {
        let folder = dir.join(hex::encode([first]));
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(LibraryError::io("list", &folder, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| LibraryError::io("list", &folder, error))?;
            if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<FileId>().ok()) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

/// A file to be synced, and whether its name is new.
#[derive(Debug)]
pub(super) struct ToSync {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) renamed: bool,
}

/// Returns when the files and their names survive a power cut.
pub(super) fn sync(files: &[ToSync]) -> Result<(), LibraryError> {
    #[cfg(target_os = "linux")]
    if files.len() > SYNC_ONE_BY_ONE {
        let mut devices = std::collections::HashSet::new();
        for one in files {
            let failed = |error| LibraryError::io("sync", &one.path, error);
            if devices.insert(one.file.metadata().map_err(failed)?.dev()) {
                rustix::fs::syncfs(&*one.file).map_err(|error| failed(error.into()))?;
            }
        }
        return Ok(());
    }
    for one in files {
        let synced = if one.renamed { one.file.sync_all() } else { one.file.sync_data() };
        synced.map_err(|error| LibraryError::io("sync", &one.path, error))?;
        if let Some(parent) = one.path.parent().filter(|_| one.renamed) {
            File::open(parent)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| LibraryError::io("sync the folder", parent, error))?;
        }
    }
    Ok(())
}

/// Returns when everything on the file system of this folder survives a power cut.
pub(super) fn sync_all_of(folder: &Path) -> Result<(), LibraryError> {
    let failed = |error| LibraryError::io("sync", folder, error);
    let file = File::open(folder).map_err(failed)?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&file).map_err(|error| failed(error.into()))?;
    #[cfg(not(target_os = "linux"))]
    file.sync_all().map_err(failed)?;
    Ok(())
}
