//! Linked files: files of the user that the library reads in place. Their fingerprints reveal changes.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::error::{LibraryError, Result};
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{FileId, Manifest, PieceIndex, PieceLayout, UnixMillis};

/// The longest interval between two ticks of a file system's clock with fractions of a second.
const CLOCK_TICK: Duration = Duration::from_millis(100);

/// The metadata that identifies a version of a file. A write, a rename, a replacement or a change of the mode
/// alters it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    pub(super) size: u64,
    pub(super) inode: u64,
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

    /// Whether every later change alters the fingerprint of a file that was read at `time` or
    /// later. The clock of a file system ticks slowly, so two writes within one tick
    /// leave the same times.
    pub(crate) fn is_settled_by(&self, time: UnixMillis) -> bool {
        // File systems without fractions of a second round to one or two seconds.
        let tick = if self.ctime.1 == 0 { Duration::from_secs(3) } else { CLOCK_TICK };
        let changed = (u64::try_from(self.ctime.0), u32::try_from(self.ctime.1));
        matches!(changed, (Ok(seconds), Ok(nanos))
            if Duration::new(seconds, nanos) + tick < Duration::from_millis(time.get()))
    }
}

/// Opens a regular file for reading. Neither blocks on pipes and devices nor accepts them.
pub(super) fn open_regular(path: &Path, flags: OFlags) -> Result<(File, Metadata)> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(|error| LibraryError::io("open", path, error))?;
    let metadata = file.metadata().map_err(|error| LibraryError::io("read the metadata of", path, error))?;
    if !metadata.is_file() {
        return Err(LibraryError::BadPath { path: path.to_owned(), problem: "not a regular file" });
    }
    Ok((file, metadata))
}

/// The result of hashing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// It matches the manifest.
    Valid,
    /// It was read and does not match the manifest.
    Invalid,
    /// It could not be read, or changed meanwhile.
    Unknown,
}

/// Returns the fingerprint of a file if its content matches the manifest and it did not change during the
/// check. Blocks.
pub(super) fn verified_fingerprint(
    manifest: &Manifest,
    file: &File,
    metadata: &Metadata,
) -> Option<Fingerprint> {
    let content = check_content(manifest, file, metadata, &|| false);
    (content == Content::Valid).then(|| Fingerprint::of(metadata))
}

/// Hashes a file with this metadata until a piece is invalid. Gives up when `stop` returns true. Blocks.
pub(super) fn check_content(
    manifest: &Manifest,
    file: &File,
    metadata: &Metadata,
    stop: &dyn Fn() -> bool,
) -> Content {
    let Some(valid) = is_valid(manifest, file, metadata, stop) else { return Content::Unknown };
    match file.metadata() {
        Ok(now) if Fingerprint::of(&now) == Fingerprint::of(metadata) => {
            if valid {
                Content::Valid
            } else {
                Content::Invalid
            }
        }
        _ => Content::Unknown,
    }
}

/// Returns `None` if a read failed or was stopped.
fn is_valid(manifest: &Manifest, file: &File, metadata: &Metadata, stop: &dyn Fn() -> bool) -> Option<bool> {
    let layout = manifest.layout();
    if metadata.len() != layout.size() {
        return Some(false);
    }
    let mut buffer =
        vec![0; layout.piece_size().min(u32::try_from(layout.size()).unwrap_or(u32::MAX)) as usize];
    for piece in layout.pieces() {
        let content = &mut buffer[..layout.len(piece)];
        file.read_exact_at(content, layout.offset(piece)).ok()?;
        if stop() {
            return None;
        }
        if !manifest.piece_is(piece, content) {
            return Some(false);
        }
    }
    Some(layout.count() > 0 || *manifest == Manifest::from_hashes(layout, Vec::new()).ok()?)
}

/// A linked file. Its methods block.
#[derive(Debug)]
pub(super) struct LinkedFile {
    id: FileId,
    pub(super) path: PathBuf,
    pub(super) fingerprint: Fingerprint,
    file: Mutex<Option<Arc<File>>>,
}

impl LinkedFile {
    pub(super) fn new(id: FileId, path: PathBuf, fingerprint: Fingerprint, file: Option<Arc<File>>) -> Self {
        Self { id, path, fingerprint, file: Mutex::new(file) }
    }

    /// Whether every change from now on alters the fingerprint.
    pub(super) fn is_settled(&self) -> bool {
        self.fingerprint.is_settled_by(SystemClock.now())
    }

    fn changed(&self) -> LibraryError {
        LibraryError::Changed { id: self.id, path: self.path.clone() }
    }

    /// Checks that the file at the path has the fingerprint of the linked file.
    pub(super) fn check(&self) -> Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) if Fingerprint::of(&metadata) == self.fingerprint => Ok(()),
            _ => Err(self.changed()),
        }
    }

    pub(super) fn read(&self, layout: PieceLayout, piece: PieceIndex, buffers: &BufferPool) -> Result<Bytes> {
        let open = self.file.lock().clone();
        let file = open.map_or_else(|| self.opened(), Ok)?;
        let mut content = buffers.take(layout.len(piece));
        match file.read_exact_at(&mut content, layout.offset(piece)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(self.changed()),
            Err(error) => return Err(LibraryError::io("read", &self.path, error)),
        }
        // After the read, so that every change before it is detected.
        self.check()?;
        Ok(content.freeze())
    }

    /// Returns the open file after a check of its path.
    pub(super) fn opened(&self) -> Result<Arc<File>> {
        self.check()?;
        if let Some(file) = &*self.file.lock() {
            return Ok(Arc::clone(file));
        }
        let (file, metadata) = match open_regular(&self.path, OFlags::empty()) {
            Ok(opened) => opened,
            Err(LibraryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(self.changed());
            }
            Err(error) => return Err(error),
        };
        if Fingerprint::of(&metadata) != self.fingerprint {
            return Err(self.changed());
        }
        let file = Arc::new(file);
        *self.file.lock() = Some(Arc::clone(&file));
        Ok(file)
    }
}
