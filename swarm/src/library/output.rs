//! Destinations of new files, and output directories that never follow symbolic links out of themselves.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt as _};
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::content_files::{self, ContentFile};
use super::error::{LibraryError, Result};
use super::layout::{ContentPlace, LinkState};
use super::linked::{Fingerprint, verified_fingerprint};
use super::task::blocking;
use enjambre_core::model::collection::{MAX_PART, PART_SUFFIX};
use enjambre_core::storage::database_file::{create_dir, sync_dir};
use enjambre_core::{Collection, Manifest, MemberPath};

/// The destination of a new file.
#[derive(Debug, Clone)]
pub enum Destination {
    /// The library's own store.
    Library,
    /// Where the content is. For a new file, the library's own store.
    Keep,
    /// A file of the user, which the library links. While the file is incomplete, it is named
    /// `PATH.enjambre-part`.
    Path {
        /// The path.
        path: PathBuf,
        /// Whether the file is executable by its owner.
        executable: bool,
        /// Whether an existing file is replaced.
        force: bool,
    },
    /// A file in an output directory.
    Member {
        /// The directory.
        dir: Arc<OutputDir>,
        /// The path relative to the directory.
        path: MemberPath,
        /// Whether the file is executable by its owner.
        executable: bool,
        /// Whether an existing file is replaced.
        force: bool,
    },
}

/// An open directory to which the files of a collection are written.
#[derive(Debug)]
pub struct OutputDir {
    root: PathBuf,
    pub(super) dir: Dir,
    /// Serializes the creation of many files. The kernel serializes it anyway, and waiting there would spin
    /// on a core.
    pub(super) writing: Mutex<()>,
}

impl OutputDir {
    /// Opens the directory at `path` and creates it if it does not exist.
    pub async fn create(path: &Path) -> Result<Arc<Self>> {
        let path = path.to_owned();
        blocking(move || {
            create_dir(&path, 0o777)
                .map_err(|error| LibraryError::io("create the directory", &path, error))?;
            Self::open(&path).map(Arc::new)
        })
        .await
    }

    /// Opens an existing directory. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let root = path.canonicalize().map_err(|error| LibraryError::io("find", path, error))?;
        let dir = Dir::open_ambient_dir(&root, ambient_authority())
            .map_err(|error| LibraryError::io("open the directory", &root, error))?;
        Ok(Self { root, dir, writing: Mutex::default() })
    }

    /// Makes everything in the directory durable.
    pub async fn sync(self: &Arc<Self>) -> Result<()> {
        let dir = Arc::clone(self);
        blocking(move || content_files::sync_file_system(&dir.root)).await
    }

    /// The absolute path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates the empty directories of a collection.
    pub(crate) async fn create_directories(self: &Arc<Self>, collection: &Collection) -> Result<()> {
        if collection.directories().is_empty() {
            return Ok(());
        }
        let (dir, directories) = (Arc::clone(self), collection.directories().to_vec());
        blocking(move || {
            directories.iter().try_for_each(|path| {
                let path = path.as_str();
                let failed = |error| LibraryError::io("create the directory", &dir.root.join(path), error);
                dir.dir.create_dir_all(path).map_err(failed)
            })
        })
        .await
    }

    /// Refuses a collection with paths that name the same file on this platform.
    pub fn check(&self, collection: &Collection) -> Result<()> {
        if cfg!(any(target_os = "macos", target_os = "ios"))
            && let Some(path) = collection.folding_collision()
        {
            let problem = "the path of another file differs only in case";
            return Err(LibraryError::BadPath { path: self.root.join(path.as_str()), problem });
        }
        Ok(())
    }
}

/// A destination and its existing content.
pub(super) enum Found {
    /// The library's own store.
    Library,
    /// A path without a file, or with a file to replace, whose content may be an older version.
    Free(Target, Option<File>),
    /// A path where the requested file already exists.
    Whole(Target, Fingerprint),
}

impl Found {
    /// Inspects a target, or the library's own store. Blocks.
    pub(super) fn at(target: Option<Target>, manifest: &Manifest) -> Result<Self> {
        let Some(target) = target else { return Ok(Self::Library) };
        let mut existing = None;
        if let Some((file, metadata)) = target.open_existing()? {
            if let Some(fingerprint) = verified_fingerprint(manifest, &file, &metadata) {
                return Ok(Self::Whole(target, fingerprint));
            }
            if !target.force {
                return Err(LibraryError::Exists(target.path()));
            }
            existing = Some(file);
        }
        Ok(Self::Free(target, existing))
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        (self.path(), self.executable, self.force) == (other.path(), other.executable, other.force)
    }
}

/// The target of a write in an output directory. Its methods block.
#[derive(Debug, Clone)]
pub(super) struct Target {
    dir: Arc<OutputDir>,
    rel: PathBuf,
    pub(super) executable: bool,
    pub(super) force: bool,
}

impl Target {
    /// Resolves a destination, or returns `None` if it is the library.
    pub(super) fn resolve(destination: &Destination) -> Result<Option<Self>> {
        match destination.clone() {
            Destination::Library | Destination::Keep => Ok(None),
            Destination::Path { path, executable, force } => {
                let absolute =
                    std::path::absolute(&path).map_err(|error| LibraryError::io("find", &path, error))?;
                let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                    return Err(LibraryError::BadPath { path, problem: "not the path of a file" });
                };
                let dir = OutputDir::open(parent).map_err(|error| match error {
                    LibraryError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                        LibraryError::BadPath { path, problem: "its directory does not exist" }
                    }
                    error => error,
                });
                let dir = Arc::new(dir?);
                Ok(Some(Self { dir, rel: name.into(), executable, force }))
            }
            Destination::Member { dir, path, executable, force } => {
                Ok(Some(Self { dir, rel: path.as_str().into(), executable, force }))
            }
        }
    }

    /// Opens the target of a linked file. Its directory must exist.
    pub(super) fn reopen(root: &Path, rel: &Path, executable: bool, force: bool) -> Result<Self> {
        Ok(Self { dir: Arc::new(OutputDir::open(root)?), rel: rel.to_owned(), executable, force })
    }

    pub(super) fn place(&self, state: LinkState) -> ContentPlace {
        ContentPlace::linked(self.dir.root(), &self.rel, state)
    }

    /// The place of content in the part file with this inode.
    pub(super) fn part_place(&self, inode: u64) -> ContentPlace {
        self.place(LinkState::Part { inode, executable: self.executable, force: self.force })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.root().join(&self.rel)
    }

    fn fail(&self, action: &'static str) -> impl Fn(io::Error) -> LibraryError + use<> {
        let path = self.path();
        move |error| LibraryError::io(action, &path, error)
    }

    /// Creates the part file, empty and locked against other processes. Returns the file and its inode. An existing file
    /// is never opened for writing: what an interrupted command left is replaced, and with `force` anything else.
    pub(super) fn create_part(&self) -> Result<(ContentFile, u64)> {
        let (dir, part) = self.part(true)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(&dir, &*part, flags, Mode::from_raw_mode(0o666)).map(File::from);
        let file = match create() {
            Err(Errno::EXIST) => {
                self.remove_leftover(&dir, &part)?;
                create()
            }
            created => created,
        };
        let file = file.map_err(|error| self.fail("create the part file of")(error.into()))?;
        let metadata = file.metadata().map_err(self.fail("read the metadata of"))?;
        self.lock(&file)?;
        Ok((ContentFile::new(self.path(), file), metadata.ino()))
    }

    /// Opens the part file if it is the regular file of this user with this inode.
    pub(super) fn open_part(&self, inode: u64) -> Result<Option<ContentFile>> {
        let opened = self.part(false).and_then(|(dir, part)| {
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            openat(&dir, &*part, flags, Mode::empty()).map_err(|error| self.fail("open")(error.into()))
        });
        let file = match opened {
            Ok(file) => File::from(file),
            Err(LibraryError::Io { source, .. })
                if matches!(
                    source.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::NOENT | Errno::LOOP)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata().map_err(self.fail("read the metadata of"))?;
        let is_own = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw();
        if !is_own || metadata.ino() != inode {
            return Ok(None);
        }
        self.lock(&file)?;
        Ok(Some(ContentFile::new(self.path(), file)))
    }

    /// Gives the part file of `from` this target's name too. Returns false if that is not possible, for example across file
    /// systems, or if it is not this open file.
    pub(super) fn link_part(&self, from: &Self, file: &ContentFile) -> Result<bool> {
        let Ok((from_dir, from_part)) = from.part(false) else { return Ok(false) };
        let (dir, part) = self.part(true)?;
        let link = || rustix::fs::linkat(&from_dir, &*from_part, &dir, &*part, AtFlags::empty());
        let linked = match link() {
            // A crash interrupted this before.
            Err(Errno::EXIST) if self.names(file) => Ok(()),
            Err(Errno::EXIST) => {
                self.remove_leftover(&dir, &part)?;
                link()
            }
            linked => linked,
        };
        if linked.is_ok() && !self.names(file) {
            let _ = unlinkat(&dir, &*part, AtFlags::empty());
            return Ok(false);
        }
        Ok(linked.is_ok())
    }

    /// Opens the directory of the part file. Returns it with the name of the part file.
    fn part(&self, create: bool) -> Result<(Dir, OsString)> {
        let root = &self.dir.dir;
        let parent = self.rel.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|_| create) {
            root.create_dir_all(parent).map_err(self.fail("create the directories of"))?;
        }
        let dir =
            root.open_dir(parent.unwrap_or(Path::new("."))).map_err(self.fail("open the directory of"))?;
        Ok((dir, part_name(self.rel.file_name().unwrap_or_default())))
    }

    /// Removes the name of a part file that an interrupted command of this user left. With `force` removes any file or
    /// symbolic link.
    fn remove_leftover(&self, dir: &Dir, part: &OsStr) -> Result<()> {
        let refuse = |problem| {
            let path = self.dir.root().join(part_path(&self.rel));
            LibraryError::BadPath { path, problem }
        };
        let found = statat(dir, part, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.fail("read the metadata of the part file of")(error.into()))?;
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        let is_own = found.st_nlink == 1 && found.st_uid == rustix::process::geteuid().as_raw();
        if !(is_file && is_own || self.force) {
            return Err(refuse(
                "it is not the part file of this download; delete it, or use --force to replace it",
            ));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if is_file && let Ok(file) = openat(dir, part, flags, Mode::empty()) {
            self.lock(&File::from(file))?;
        }
        unlinkat(dir, part, AtFlags::empty())
            .map_err(|error| self.fail("replace the part file of")(error.into()))
    }

    fn lock(&self, file: &File) -> Result<()> {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                Err(LibraryError::BadPath { path: self.path(), problem: "another process is writing it" })
            }
            // Some file systems have no locks.
            _ => Ok(()),
        }
    }

    /// Opens the existing file at the path, or returns `None` if there is none. Anything but a regular file
    /// is an error.
    pub(super) fn open_existing(&self) -> Result<Option<(File, Metadata)>> {
        match self.dir.dir.metadata(&self.rel) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(LibraryError::Exists(self.path())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.fail("read the metadata of")(error)),
        }
        // Another process may replace it meanwhile, for example with a pipe.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let file = self.dir.dir.open_with(&self.rel, &options).map_err(self.fail("open"))?.into_std();
        let metadata = file.metadata().map_err(self.fail("read the metadata of"))?;
        if metadata.is_file() { Ok(Some((file, metadata))) } else { Err(LibraryError::Exists(self.path())) }
    }

    /// Renames the complete part file to its final name, durably with `sync`. Returns its fingerprint.
    pub(super) fn finish(&self, part: &ContentFile, sync: bool) -> Result<Fingerprint> {
        let metadata = part.file.metadata().map_err(self.fail("read the metadata of"))?;
        // By its whole path: the directory may have been renamed as well.
        let is_same = |found: Metadata| (found.dev(), found.ino()) == (metadata.dev(), metadata.ino());
        let part_file = self.dir.root().join(part_path(&self.rel));
        if !std::fs::symlink_metadata(part_file).is_ok_and(is_same) {
            let problem = "its part file was moved or deleted during the download";
            return Err(LibraryError::BadPath { path: self.path(), problem });
        }
        if self.executable {
            let mode = metadata.mode();
            let permissions = std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2);
            part.file.set_permissions(permissions).map_err(self.fail("make executable"))?;
        }
        if sync {
            part.file.sync_all().map_err(self.fail("sync"))?;
        }
        let (dir, from) = self.part(false)?;
        match rename(&dir, &from, self.rel.file_name().unwrap_or_default(), self.force) {
            Err(Errno::EXIST) => return Err(LibraryError::Exists(self.path())),
            renamed => renamed.map_err(|error| self.fail("rename the part file of")(error.into()))?,
        }
        // The library keeps the file open, and other programs may lock files of the user.
        let _ = flock(&*part.file, FlockOperation::Unlock);
        if sync {
            self.sync_dir()?;
        }
        Ok(Fingerprint::of(&part.file.metadata().map_err(self.fail("read the metadata of"))?))
    }

    /// The directory of the file and its ancestors in the output directory, which may be new.
    pub(super) fn dirs(&self) -> Vec<PathBuf> {
        self.rel.ancestors().skip(1).map(|dir| self.dir.root().join(dir)).collect()
    }

    /// Makes the names of the file, its part file and their directories, which may be new, durable.
    pub(super) fn sync_dir(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let sync = |path: &Path| {
            let dir = self.dir.dir.open_dir(Path::new(".").join(path))?;
            sync_dir(&openat(&dir, ".", flags, Mode::empty())?.into())
        };
        self.rel.ancestors().skip(1).try_for_each(sync).map_err(self.fail("sync the directory of"))
    }

    /// Renames a file with this inode back to the part file, because a power cut lost some of its content.
    pub(super) fn unfinish(&self, inode: u64) -> Result<()> {
        let dir = &self.dir.dir;
        if self.has_inode(&self.rel, inode) {
            dir.rename(&self.rel, dir, part_path(&self.rel)).map_err(self.fail("rename"))?;
        }
        Ok(())
    }

    /// Removes the part file if it has this inode.
    pub(super) fn remove_part(&self, inode: u64) -> Result<()> {
        if self.has_part(inode) {
            self.dir.dir.remove_file(part_path(&self.rel)).map_err(self.fail("remove the part file of"))?;
        }
        Ok(())
    }

    /// Whether the part file has this inode.
    pub(super) fn has_part(&self, inode: u64) -> bool {
        self.has_inode(&part_path(&self.rel), inode)
    }

    fn has_inode(&self, rel: &Path, inode: u64) -> bool {
        self.dir.dir.symlink_metadata(rel).is_ok_and(|metadata| MetadataExt::ino(&metadata) == inode)
    }

    /// Whether the part file is this open file.
    pub(super) fn names(&self, part: &ContentFile) -> bool {
        let Ok((dir, name)) = self.part(false) else { return false };
        is_same(statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW), fstat(&*part.file))
    }

    /// Whether both part files have the same name in the same directory.
    pub(super) fn is_same_part(&self, other: &Self) -> bool {
        let (Ok((dir, name)), Ok((other_dir, other_name))) = (self.part(false), other.part(false)) else {
            return false;
        };
        name == other_name && is_same(fstat(dir), fstat(other_dir))
    }
}

/// Whether the metadata is that of the same file or directory.
fn is_same(one: rustix::io::Result<Stat>, other: rustix::io::Result<Stat>) -> bool {
    matches!((one, other), (Ok(one), Ok(other)) if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Renames a file within a directory. Replaces an existing file only with `force`.
pub(super) fn rename(dir: impl AsFd, from: &OsStr, to: &OsStr, force: bool) -> Result<(), Errno> {
    #[cfg(target_os = "linux")]
    if !force {
        use rustix::fs::{RenameFlags, renameat_with};
        match renameat_with(&dir, from, &dir, to, RenameFlags::NOREPLACE) {
            // Not supported by the file system.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            result => return result,
        }
    }
    if !force && statat(&dir, to, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Err(Errno::EXIST);
    }
    rustix::fs::renameat(&dir, from, &dir, to)
}

fn part_path(rel: &Path) -> PathBuf {
    rel.with_file_name(part_name(rel.file_name().unwrap_or_default()))
}

/// The name of the part file of a file with this name.
pub(super) fn part_name(name: &OsStr) -> OsString {
    let mut name = name.to_owned();
    if name.len() + PART_SUFFIX.len() > MAX_PART {
        // With the suffix the name would be too long for file systems.
        name = blake3::hash(name.as_bytes()).to_hex()[..32].into();
    }
    name.push(PART_SUFFIX);
    name
}
