//! Small files, their content, and writing them to an output directory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cap_std::fs::Dir;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, unlinkat};
use rustix::io::Errno;

use crate::library::content_files::check_reserve;
use crate::library::error::{LibraryError, Result};
use crate::library::layout::{ContentPlace, LinkState};
use crate::library::linked::Fingerprint;
use crate::library::output::{OutputDir, part_name, rename};
use crate::library::state::{LibraryState, Slot};
use enjambre_core::model::layout::MIN_PIECE_SIZE;
use enjambre_core::{FileId, MemberPath, PieceLayout};

/// The size of the largest small file in bytes: one piece.
pub const MAX_SMALL: u64 = MIN_PIECE_SIZE as u64;

/// A small file that the caller verified against its id.
#[derive(Debug, Clone)]
pub struct SmallFile {
    /// The hash of the content.
    pub id: FileId,
    /// The whole content.
    pub content: Bytes,
    /// The paths in the output directory, and whether the file is executable there. With an output directory
    /// there is at least one path.
    pub paths: Vec<(MemberPath, bool)>,
}

/// The output directory of small files.
#[derive(Debug, Clone)]
pub struct SmallOutput {
    /// The directory.
    pub dir: Arc<OutputDir>,
    /// Whether existing files are replaced.
    pub force: bool,
}

/// A stored small file to copy to an output directory.
#[derive(Debug, Clone)]
pub struct SmallCopy {
    /// The file.
    pub id: FileId,
    /// The size in bytes.
    pub size: u64,
    /// The paths in the output directory, and whether the file is executable there.
    pub paths: Vec<(MemberPath, bool)>,
}

/// The content of a batch of small files.
#[derive(Debug, Clone, Default)]
pub struct SmallContent {
    /// The size of each file in the order of the request; `None` for a file that is not stored.
    pub sizes: Vec<Option<u64>>,
    /// The concatenated content of the stored files.
    pub content: Bytes,
}

/// The layout of a small file, or `None` if a file of this size is not small.
pub(super) fn small_layout(size: u64) -> Option<PieceLayout> {
    PieceLayout::new(size).ok().filter(|layout| layout.count() <= 1)
}

impl LibraryState {
    pub(in crate::library) fn complete_small(&self, id: &FileId) -> Option<&Slot> {
        let slot = self.slots.get(id).filter(|slot| slot.is_complete())?;
        small_layout(slot.record.size).map(|_| slot)
    }
}

impl Slot {
    /// Whether all pieces are stored and a linked file has its final name.
    pub(super) fn is_complete(&self) -> bool {
        let record = &self.record;
        let pieces = record.layout().map_or(u32::MAX, |layout| layout.count());
        let is_part = matches!(record.place, ContentPlace::Linked { state: LinkState::Part { .. }, .. });
        self.have == pieces && record.withdrawn.is_none() && !is_part
    }
}

pub(super) struct WrittenFile {
    pub(super) id: FileId,
    pub(super) size: u64,
    /// The written paths, of which the library links the first.
    pub(super) places: Vec<ContentPlace>,
    /// Whether something exists at one of the paths.
    pub(super) blocked: bool,
}

/// Writes files to an output directory under their final names. Blocks.
pub(super) fn write_to_output(files: Vec<SmallFile>, output: &SmallOutput) -> Result<Vec<WrittenFile>> {
    let _turn = output.dir.writing.lock();
    let bytes = files.iter().map(|file| file.content.len() as u64 * file.paths.len() as u64).sum();
    check_reserve(&output.dir.dir, output.dir.root(), bytes)?;
    let mut writer = SmallFileWriter::new(&output.dir, output.force);
    let mut written = Vec::with_capacity(files.len());
    for file in files {
        let (mut places, mut blocked) = (Vec::new(), false);
        for (path, executable) in &file.paths {
            match writer.write(path, *executable, &file.content)? {
                Some(fingerprint) => {
                    let (root, rel) = (output.dir.root(), Path::new(path.as_str()));
                    places.push(ContentPlace::linked(root, rel, LinkState::Whole(fingerprint)));
                }
                None => blocked = true,
            }
        }
        written.push(WrittenFile { id: file.id, size: file.content.len() as u64, places, blocked });
    }
    Ok(written)
}

/// A writer for a batch of files, with the subdirectories it has opened. Each file is written as a part
/// file, which is then renamed. No symbolic link is followed out of the directory. The methods block.
struct SmallFileWriter<'a> {
    output: &'a OutputDir,
    force: bool,
    dirs: HashMap<String, Dir>,
}

impl<'a> SmallFileWriter<'a> {
    fn new(output: &'a OutputDir, force: bool) -> Self {
        Self { output, force, dirs: HashMap::new() }
    }

    /// Writes a file under its final name. Returns its fingerprint, or `None` if something exists at the
    /// path.
    fn write(&mut self, path: &MemberPath, executable: bool, content: &[u8]) -> Result<Option<Fingerprint>> {
        let (parent, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
        let force = self.force;
        let failed = {
            let shown = self.output.root().join(path.as_str());
            move |action, error: io::Error| LibraryError::io(action, &shown, error)
        };
        let dir = self.dir(parent).map_err(|error| failed("create the directories of", error))?;
        let (name, part) = (OsStr::new(name), part_name(OsStr::new(name)));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(dir, &*part, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => File::from(file),
            Err(Errno::EXIST) => return Ok(None),
            Err(error) => return Err(failed("create", error.into())),
        };
        if matches!(flock(&file, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK)) {
            // Another process opened the part file just now and continues the download.
            return Ok(None);
        }
        let named = fill(&file, executable, content).and_then(|()| match rename(dir, &part, name, force) {
            Ok(()) => file.metadata().map(|metadata| Some(Fingerprint::of(&metadata))),
            Err(Errno::EXIST | Errno::ISDIR) => Ok(None),
            Err(error) => Err(error.into()),
        });
        if !matches!(named, Ok(Some(_))) {
            let _ = unlinkat(dir, &*part, AtFlags::empty());
        }
        named.map_err(|error| failed("write", error))
    }

    fn dir(&mut self, path: &str) -> io::Result<&Dir> {
        if path.is_empty() {
            return Ok(&self.output.dir);
        }
        match self.dirs.entry(path.to_owned()) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(vacant) => {
                let root = &self.output.dir;
                let opened = match root.open_dir(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        root.create_dir_all(path)?;
                        root.open_dir(path)?
                    }
                    opened => opened?,
                };
                Ok(vacant.insert(opened))
            }
        }
    }
}

fn fill(file: &File, executable: bool, content: &[u8]) -> io::Result<()> {
    file.write_all_at(content, 0)?;
    if executable {
        let mode = file.metadata()?.permissions().mode();
        file.set_permissions(std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
    }
    Ok(())
}
