//! Writes whole small files beneath a directory: each under the name of a part file first, then renamed.
//!
//! It never follows a link out of the directory. What is in the way is left alone and reported: the usual way of
//! a file looks closer at it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use cap_std::fs::Dir;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::error::LibraryError;
use super::linked::Fingerprint;
use super::output::{OutputDir, part_name};
use crate::model::collection::MemberPath;

/// The folders beneath an output directory that were opened for a batch of files. Its methods block.
pub(super) struct Folders<'a> {
    output: &'a OutputDir,
    force: bool,
    open: HashMap<String, Dir>,
}

impl<'a> Folders<'a> {
    pub(super) fn new(output: &'a OutputDir, force: bool) -> Self {
        Self { output, force, open: HashMap::new() }
    }

    /// Writes a file and gives it its name. Returns what it looks like then, or `None` where something is in the way.
    pub(super) fn write(
        &mut self,
        path: &MemberPath,
        executable: bool,
        content: &[u8],
    ) -> Result<Option<Fingerprint>, LibraryError> {
        let (parent, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
        let force = self.force;
        let failed = {
            let shown = self.output.root().join(path.as_str());
            move |action, error: io::Error| LibraryError::io(action, &shown, error)
        };
        let folder = self.folder(parent).map_err(|error| failed("create the folders of", error))?;
        let (name, part) = (OsStr::new(name), part_name(OsStr::new(name)));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(folder, &*part, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => File::from(file),
            Err(Errno::EXIST) => return Ok(None),
            Err(error) => return Err(failed("create", error.into())),
        };
        if matches!(flock(&file, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK)) {
            // Another process found it in this moment and goes on with it.
            return Ok(None);
        }
        let named =
            fill(&file, executable, content).and_then(|()| match rename(folder, &part, name, force) {
                Ok(()) => file.metadata().map(|metadata| Some(Fingerprint::of(&metadata))),
                Err(Errno::EXIST | Errno::ISDIR) => Ok(None),
                Err(error) => Err(error.into()),
            });
        if !matches!(named, Ok(Some(_))) {
            let _ = unlinkat(folder, &*part, AtFlags::empty());
        }
        named.map_err(|error| failed("write", error))
    }

    /// The folder with this path beneath the directory, which is created where it is missing.
    fn folder(&mut self, path: &str) -> io::Result<&Dir> {
        if path.is_empty() {
            return Ok(self.output.dir());
        }
        match self.open.entry(path.to_owned()) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(vacant) => {
                let root = self.output.dir();
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

/// Renames within a folder; without `force` nothing is replaced.
fn rename(folder: impl AsFd, from: &OsStr, to: &OsStr, force: bool) -> Result<(), Errno> {
    #[cfg(target_os = "linux")]
    if !force {
        use rustix::fs::{RenameFlags, renameat_with};
        match renameat_with(&folder, from, &folder, to, RenameFlags::NOREPLACE) {
            // A file system that cannot.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            result => return result,
        }
    }
    if !force && rustix::fs::statat(&folder, Path::new(to), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Err(Errno::EXIST);
    }
    renameat(&folder, from, &folder, to)
}
