//! Destinations of new files, and output directories that never follow symbolic links out of themselves.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt, OpenOptions};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use super::content_files::{self, ContentFile};
use super::error::{LibraryError, Result};
use super::layout::{ContentPlace, LinkState};
use super::linked::{Fingerprint, verified_fingerprint};
use super::task::blocking;
use enjambre_core::model::collection::{MAX_PART, PART_SUFFIX};
use enjambre_core::{Collection, Manifest, MemberPath};

/// The destination of a new file.
#[derive(Debug, Clone)]
pub enum Destination {
    /// The library's own store.
    Library,
    /// A file of the user, which the library links. While the file is incomplete, it is named
    /// `PATH.enjambre-part`.
    Path {
        /// The path.
        path: PathBuf,
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
            content_files::create_dir(&path)?;
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
    /// A path without a file, or with a file to replace.
    Free(Target),
    /// A path where the requested file already exists.
    Whole(Target, Fingerprint),
}

impl Found {
    /// Inspects a destination. Blocks.
    pub(super) fn at(destination: Destination, manifest: &Manifest) -> Result<Self> {
        let Some(target) = Target::resolve(destination)? else { return Ok(Self::Library) };
        if let Some((file, metadata)) = target.open_existing()? {
            if let Some(fingerprint) = verified_fingerprint(manifest, &file, &metadata) {
                return Ok(Self::Whole(target, fingerprint));
            }
            if !target.force {
                return Err(LibraryError::Exists(target.path()));
            }
        }
        Ok(Self::Free(target))
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
    pub(super) fn resolve(destination: Destination) -> Result<Option<Self>> {
        match destination {
            Destination::Library => Ok(None),
            Destination::Path { path, force } => {
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
                Ok(Some(Self { dir, rel: name.into(), executable: false, force }))
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

    /// Creates the part file, empty and locked against other processes. Returns the file and its inode.
    pub(super) fn create_part(&self) -> Result<(ContentFile, u64)> {
        let part = part_path(&self.rel);
        if let Some(parent) = self.rel.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.dir.dir.create_dir_all(parent).map_err(self.fail("create the directories of"))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let file = self.dir.dir.open_with(&part, &options).map_err(self.fail("create"))?.into_std();
        let (file, inode) = self.lock(file)?;
        file.set_len(0).map_err(self.fail("truncate"))?;
        Ok((ContentFile::new(self.path(), file), inode))
    }

    /// Opens the part file if it exists and has this inode.
    pub(super) fn open_part(&self, inode: u64) -> Result<Option<ContentFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match self.dir.dir.open_with(part_path(&self.rel), &options) {
            Ok(file) => file.into_std(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.fail("open")(error)),
        };
        let (file, found) = self.lock(file)?;
        Ok((found == inode).then(|| ContentFile::new(self.path(), file)))
    }

    fn lock(&self, file: File) -> Result<(File, u64)> {
        let metadata = file.metadata().map_err(self.fail("read the metadata of"))?;
        if !metadata.is_file() {
            let problem = "its part file is not a regular file";
            return Err(LibraryError::BadPath { path: self.path(), problem });
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                let problem = "another process is writing it";
                return Err(LibraryError::BadPath { path: self.path(), problem });
            }
            // Some file systems have no locks.
            _ => {}
        }
        Ok((file, metadata.ino()))
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
        let file = self.dir.dir.open(&self.rel).map_err(self.fail("open"))?.into_std();
        let metadata = file.metadata().map_err(self.fail("read the metadata of"))?;
        Ok(Some((file, metadata)))
    }

    /// Renames the complete part file to its final name. Returns its fingerprint.
    pub(super) fn finish(&self, part: &ContentFile) -> Result<Fingerprint> {
        if self.executable {
            let metadata = part.file.metadata().map_err(self.fail("read the metadata of"))?;
            let mode = metadata.mode();
            let permissions = std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2);
            part.file.set_permissions(permissions).map_err(self.fail("make executable"))?;
        }
        let dir = &self.dir.dir;
        if !self.force && dir.symlink_metadata(&self.rel).is_ok() {
            return Err(LibraryError::Exists(self.path()));
        }
        dir.rename(part_path(&self.rel), dir, &self.rel).map_err(self.fail("rename the part file of"))?;
        Ok(Fingerprint::of(&part.file.metadata().map_err(self.fail("read the metadata of"))?))
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
        let part = part_path(&self.rel);
        if self.has_inode(&part, inode) {
            self.dir.dir.remove_file(&part).map_err(self.fail("remove the part file of"))?;
        }
        Ok(())
    }

    fn has_inode(&self, rel: &Path, inode: u64) -> bool {
        self.dir.dir.symlink_metadata(rel).is_ok_and(|metadata| MetadataExt::ino(&metadata) == inode)
    }
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
