//! Files of the user that the library only links: noticed when they change, and never trusted unread.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::create::now_ms;
use super::error::LibraryError;
use crate::buffers::BufferPool;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};

/// How long the finer clocks of file systems stand still at most.
const SETTLED_AFTER_TICK: Duration = Duration::from_millis(100);

/// What a file looks like from outside. A write, a rename, a replacement or a change of rights alters it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    size: u64,
    inode: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Fingerprint {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            inode: metadata.ino(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Fingerprint {
    pub(crate) const fn inode(&self) -> u64 {
        self.inode
    }

    /// In bytes.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Whether the file was last changed so long before this time, in milliseconds since 1970-01-01 UTC, that
    /// whoever read it from then on read what looks like this. The clock of a file system ticks slowly, so a second
    /// write may leave the times of one just before as they are.
    pub(crate) fn is_settled_by(&self, time_ms: u64) -> bool {
        // A file system that tells no fractions tells whole seconds, or pairs of them.
        let tick = if self.ctime.1 == 0 { Duration::from_secs(3) } else { SETTLED_AFTER_TICK };
        let changed = (u64::try_from(self.ctime.0), u32::try_from(self.ctime.1));
        matches!(changed, (Ok(seconds), Ok(nanos))
            if Duration::new(seconds, nanos) + tick < Duration::from_millis(time_ms))
    }
}

/// Opens a regular file for reading. A pipe or a device neither blocks this nor passes.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata), LibraryError> {
    open_with(path, OFlags::empty())
}

/// As [`open_regular`], but a symbolic link does not pass either.
pub(crate) fn open_regular_itself(path: &Path) -> Result<(File, Metadata), LibraryError> {
    open_with(path, OFlags::NOFOLLOW)
}

fn open_with(path: &Path, flags: OFlags) -> Result<(File, Metadata), LibraryError> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(|error| LibraryError::io("open", path, error))?;
    let metadata = file.metadata().map_err(|error| LibraryError::io("look at", path, error))?;
    if !metadata.is_file() {
        return Err(LibraryError::BadPath { path: path.to_owned(), problem: "it is not a regular file" });
    }
    Ok((file, metadata))
}

/// A linked file. Its methods block.
#[derive(Debug)]
pub(super) struct LinkedFile {
    id: FileId,
    path: PathBuf,
    mark: Fingerprint,
    file: Mutex<Option<Arc<File>>>,
}

impl LinkedFile {
    pub(super) fn new(id: FileId, path: PathBuf, mark: Fingerprint, file: Option<Arc<File>>) -> Self {
        Self { id, path, mark, file: Mutex::new(file) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether whatever happens to the file from now on shows.
    pub(super) fn is_settled(&self) -> bool {
        self.mark.is_settled_by(now_ms())
    }

    /// Whether the file is the one that was linked, as far as one can see from outside.
    pub(super) fn check(&self) -> Result<(), LibraryError> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) if Fingerprint::of(&metadata) == self.mark => Ok(()),
            _ => Err(LibraryError::Changed { id: self.id, path: self.path.clone() }),
        }
    }

    pub(super) fn read(
        &self,
        layout: PieceLayout,
        piece: PieceIndex,
        buffers: &BufferPool,
    ) -> Result<Bytes, LibraryError> {
        let changed = || LibraryError::Changed { id: self.id, path: self.path.clone() };
        let open = self.file.lock().clone();
        let file = open.map_or_else(|| self.opened(), Ok)?;
        let mut content = buffers.take(layout.len(piece));
        match file.read_exact_at(&mut content, layout.offset(piece)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(changed()),
            Err(error) => return Err(LibraryError::io("read", &self.path, error)),
        }
        // Whatever changed before the read is seen now, too.
        self.check()?;
        Ok(content.freeze())
    }

    /// The open file, checked against the path.
    pub(super) fn opened(&self) -> Result<Arc<File>, LibraryError> {
        self.check()?;
        if let Some(file) = &*self.file.lock() {
            return Ok(Arc::clone(file));
        }
        let changed = || LibraryError::Changed { id: self.id, path: self.path.clone() };
        let (file, metadata) = match open_regular(&self.path) {
            Ok(opened) => opened,
            Err(LibraryError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(changed());
            }
            Err(error) => return Err(error),
        };
        if Fingerprint::of(&metadata) != self.mark {
            return Err(changed());
        }
        let file = Arc::new(file);
        *self.file.lock() = Some(Arc::clone(&file));
        Ok(file)
    }
}
