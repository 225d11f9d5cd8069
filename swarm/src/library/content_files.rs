//! Content in plain files: positioned reads and writes, and syncs of many files at once. All functions block.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::{LibraryError, Result};
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::storage::database_file::{check_free_space_at, create_private_dir, sync_dir};
use enjambre_core::{FileId, PieceIndex, PieceLayout};

/// The largest number of files that are synced one by one. Above it, one sync of the whole file system is
/// cheaper.
const SYNC_ONE_BY_ONE: usize = 16;
/// The free bytes that writes leave on a disk for the databases and other programs.
const RESERVE: u64 = 8 << 20;

/// An open file with content, complete or not.
#[derive(Debug)]
pub(super) struct ContentFile {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// Whether the blocks of the whole file are allocated.
    allocated: AtomicBool,
    /// Serializes writes. The kernel serializes them anyway, and waiting writers would spin on a core that
    /// could hash.
    writing: Mutex<()>,
}

impl ContentFile {
    pub(super) fn new(path: PathBuf, file: File) -> Self {
        Self { path, file: Arc::new(file), allocated: AtomicBool::new(false), writing: Mutex::new(()) }
    }

    /// The same file at another path.
    pub(super) fn at(&self, path: PathBuf) -> Self {
        let allocated = AtomicBool::new(self.allocated.load(Ordering::Relaxed));
        Self { path, file: Arc::clone(&self.file), allocated, writing: Mutex::new(()) }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    pub(super) fn inode(&self) -> Result<u64> {
        let failed = |error| LibraryError::io("read the metadata of", &self.path, error);
        Ok(self.file.metadata().map_err(failed)?.ino())
    }

    /// Opens or creates the file of an id in the content directory.
    pub(super) fn open(dir: &Path, id: &FileId) -> Result<Self> {
        let path = path_of(dir, id);
        if let Some(parent) = path.parent() {
            create_dir(parent)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| LibraryError::io("open", &path, error))?;
        Ok(Self::new(path, file))
    }

    /// Shares the blocks of another file of this size (a reflink) if the file system supports it.
    #[cfg(target_os = "linux")]
    pub(super) fn reflink(&self, source: &File, size: u64) -> bool {
        rustix::fs::ioctl_ficlone(&*self.file, source).is_ok() && self.file.set_len(size).is_ok()
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn reflink(&self, _source: &File, _size: u64) -> bool {
        false
    }

    /// Whether the file has this content at the place of the piece.
    pub(super) fn contains(&self, layout: PieceLayout, piece: PieceIndex, content: &[u8]) -> bool {
        let mut stored = vec![0; content.len()];
        self.file.read_exact_at(&mut stored, layout.offset(piece)).is_ok() && stored == content
    }

    /// Reads a piece, or returns `None` if the file is too short.
    pub(super) fn read(
        &self,
        layout: PieceLayout,
        piece: PieceIndex,
        buffers: &BufferPool,
    ) -> Result<Option<Bytes>> {
        let mut content = buffers.take(layout.len(piece));
        match self.file.read_exact_at(&mut content, layout.offset(piece)) {
            Ok(()) => Ok(Some(content.freeze())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(LibraryError::io("read", &self.path, error)),
        }
    }

    pub(super) fn write(&self, layout: PieceLayout, piece: PieceIndex, content: &[u8]) -> Result<()> {
        self.write_at(content, layout.offset(piece))
    }

    fn write_at(&self, content: &[u8], offset: u64) -> Result<()> {
        let _turn = self.writing.lock();
        if content.iter().all(|byte| *byte == 0) && self.punch_hole(offset, content.len() as u64) {
            return Ok(());
        }
        if !self.allocated.load(Ordering::Relaxed) {
            check_reserve(&self.file, &self.path, content.len() as u64)?;
        }
        self.file.write_all_at(content, offset).map_err(|error| LibraryError::io("write", &self.path, error))
    }

    /// Makes a range read as zeros without blocks, so that sparse files stay sparse. Returns false if the file system does
    /// not support it.
    fn punch_hole(&self, offset: u64, len: u64) -> bool {
        let (Ok(metadata), 1..) = (self.file.metadata(), len) else { return false };
        let end = offset + len;
        // Beyond the end there are no blocks yet. In contrast to `set_len`, a write at the new end cannot truncate the file if
        // another writer extends it meanwhile.
        let extended = metadata.len() <= offset && self.file.write_all_at(&[0], end - 1).is_ok();
        #[cfg(target_os = "linux")]
        if extended || metadata.len() >= end {
            use rustix::fs::FallocateFlags;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            return rustix::fs::fallocate(&*self.file, flags, offset, len).is_ok() || extended;
        }
        extended
    }

    /// Allocates the blocks of the whole file if the file system supports it and has the space. A sparse file may need less.
    pub(super) fn preallocate(&self, size: u64) -> Result<()> {
        #[cfg(target_os = "linux")]
        if size > 0 && check_reserve(&self.file, &self.path, size).is_ok() {
            use rustix::io::Errno;
            match rustix::fs::fallocate(&*self.file, rustix::fs::FallocateFlags::empty(), 0, size) {
                Ok(()) => self.allocated.store(true, Ordering::Relaxed),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR | Errno::INVAL) => {}
                Err(error) => return Err(LibraryError::io("preallocate", &self.path, error.into())),
            }
        }
        let _ = size;
        Ok(())
    }
}

/// Refuses writes that would fill the disk of a file completely.
pub(super) fn check_reserve(file: impl AsFd, path: &Path, bytes: u64) -> Result<()> {
    Ok(check_free_space_at(file, path, bytes.saturating_add(RESERVE))?)
}

#[derive(Debug)]
pub(super) struct StoredPiece {
    pub(super) id: FileId,
    pub(super) number: u32,
    pub(super) offset: u64,
    pub(super) content: Bytes,
}

impl StoredPiece {
    pub(super) fn new(id: FileId, layout: PieceLayout, piece: PieceIndex, content: Bytes) -> Self {
        Self { id, number: piece.get(), offset: layout.offset(piece), content }
    }
}

pub(super) fn write(dir: &Path, pieces: &[StoredPiece]) -> Result<()> {
    for pieces in pieces.chunk_by(|one, next| one.id == next.id) {
        let file = ContentFile::open(dir, &pieces[0].id)?;
        pieces.iter().try_for_each(|piece| file.write_at(&piece.content, piece.offset))?;
    }
    Ok(())
}

/// Makes a complete file the content of an id. Returns `false` if it is on another file system.
pub(super) fn adopt(dir: &Path, id: &FileId, file: &Path) -> Result<bool> {
    let path = path_of(dir, id);
    if let Some(parent) = path.parent() {
        create_dir(parent)?;
    }
    match std::fs::rename(file, &path) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(false),
        moved => moved.map(|()| true).map_err(|error| LibraryError::io("move", file, error)),
    }
}

pub(super) fn clear(dir: &Path) -> Result<()> {
    list(dir)?.iter().try_for_each(|id| remove(dir, id))
}

/// Creates a directory of the library, which only this user can enter.
pub(super) fn create_dir(dir: &Path) -> Result<()> {
    create_private_dir(dir).map_err(|error| LibraryError::io("create the directory", dir, error))
}

pub(super) fn path_of(dir: &Path, id: &FileId) -> PathBuf {
    let name = id.to_string();
    dir.join(&name[..2]).join(name)
}

pub(super) fn remove(dir: &Path, id: &FileId) -> Result<()> {
    remove_file(&path_of(dir, id))
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LibraryError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Returns the ids of all files.
pub(super) fn list(dir: &Path) -> Result<Vec<FileId>> {
    let lists: Result<Vec<_>> = (0..=255).map(|first| list_subdir(dir, first)).collect();
    Ok(lists?.concat())
}

/// Returns whether there is no file.
pub(super) fn is_empty(dir: &Path) -> Result<bool> {
    for first in 0..=255 {
        if !list_subdir(dir, first)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the ids that begin with this byte.
fn list_subdir(dir: &Path, first: u8) -> Result<Vec<FileId>> {
    let subdir = dir.join(hex::encode([first]));
    let entries = match std::fs::read_dir(&subdir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LibraryError::io("list", &subdir, error)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| LibraryError::io("list", &subdir, error))?;
        ids.extend(entry.file_name().to_str().and_then(|name| name.parse::<FileId>().ok()));
    }
    Ok(ids)
}

#[derive(Debug)]
pub(super) struct ToSync {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// The directories with new entries for it.
    pub(super) dirs: Vec<PathBuf>,
}

/// Makes files and their directory entries durable.
pub(super) fn sync(files: &[ToSync]) -> Result<()> {
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
        let synced = if one.dirs.is_empty() { one.file.sync_data() } else { one.file.sync_all() };
        synced.map_err(|error| LibraryError::io("sync", &one.path, error))?;
    }
    let dirs: BTreeSet<&PathBuf> = files.iter().flat_map(|one| &one.dirs).collect();
    for dir in dirs {
        match File::open(dir).and_then(|dir| sync_dir(&dir)) {
            // The user deleted or moved it together with its files.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            synced => synced.map_err(|error| LibraryError::io("sync the directory", dir, error))?,
        }
    }
    Ok(())
}

/// Makes the whole file system of a directory durable.
pub(super) fn sync_file_system(dir: &Path) -> Result<()> {
    let failed = |error| LibraryError::io("sync", dir, error);
    let file = File::open(dir).map_err(failed)?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&file).map_err(|error| failed(error.into()))?;
    #[cfg(not(target_os = "linux"))]
    file.sync_all().map_err(failed)?;
    Ok(())
}
