//! Where the content of a new file goes, and writing beneath a directory without following links out of it.

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
use super::error::LibraryError;
use super::layout;
use super::linked::Fingerprint;
use crate::model::collection::{Collection, MAX_PART, MemberPath, PART_SUFFIX};

/// Where the content of a new file goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Into the library.
    Library,
    /// Into a file of the user, which the library then links. It is filled as `PATH.enjambre-part` and renamed
    /// when every piece is there.
    Path {
        /// The path.
        path: PathBuf,
        /// Replace what is there.
        force: bool,
    },
    /// Into a file beneath a directory, never through a link that leads out of it.
    Member {
        /// The directory.
        dir: Arc<OutputDir>,
        /// The path beneath it.
        path: MemberPath,
        /// Whether the owner may execute it.
        executable: bool,
        /// Replace what is there.
        force: bool,
    },
}

/// An open directory into which the files of a collection are written.
#[derive(Debug)]
pub struct OutputDir {
    root: PathBuf,
    dir: Dir,
    /// Held while many files are created beneath it: the kernel lets one in at a time, and waiting there for each
    /// file anew takes a core.
    pub(super) filling: Mutex<()>,
}

impl OutputDir {
    /// Opens the directory at `path`, which is created where it is missing.
    pub async fn create(path: &Path) -> Result<Arc<Self>, LibraryError> {
        let path = path.to_owned();
        super::layout::blocking(move || {
            std::fs::create_dir_all(&path)
                .map_err(|error| LibraryError::io("create the folder", &path, error))?;
            Self::open(&path).map(Arc::new)
        })
        .await
    }

    /// Opens a directory that exists. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, LibraryError> {
        let root = path.canonicalize().map_err(|error| LibraryError::io("find", path, error))?;
        let dir = Dir::open_ambient_dir(&root, ambient_authority())
            .map_err(|error| LibraryError::io("open the folder", &root, error))?;
        Ok(Self { root, dir, filling: Mutex::default() })
    }

    /// Returns when everything beneath it survives a power cut.
    pub async fn sync(self: &Arc<Self>) -> Result<(), LibraryError> {
        let dir = Arc::clone(self);
        layout::blocking(move || content_files::sync_all_of(&dir.root)).await
    }

    /// The absolute path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Refuses a collection of which two files would be one here.
    pub fn check(&self, collection: &Collection) -> Result<(), LibraryError> {
        if cfg!(any(target_os = "macos", target_os = "ios"))
            && let Some(path) = collection.folding_collision()
        {
            let problem = "another file differs from it only in upper and lower case";
            return Err(LibraryError::BadPath { path: self.root.join(path.as_str()), problem });
        }
        Ok(())
    }

    /// The directory.
    pub(crate) const fn dir(&self) -> &Dir {
        &self.dir
    }
}

/// A file that is to be written beneath a directory. Its methods block.
#[derive(Debug, Clone)]
pub(super) struct Target {
    dir: Arc<OutputDir>,
    rel: PathBuf,
    pub(super) executable: bool,
    pub(super) force: bool,
}

impl Target {
    /// The target of a destination; none where that is the library.
    pub(super) fn resolve(destination: Destination) -> Result<Option<Self>, LibraryError> {
        match destination {
            Destination::Library => Ok(None),
            Destination::Path { path, force } => {
                let absolute =
                    std::path::absolute(&path).map_err(|error| LibraryError::io("find", &path, error))?;
                let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                    return Err(LibraryError::BadPath { path, problem: "it is not the path of a file" });
                };
                let dir = Arc::new(OutputDir::open(parent)?);
                Ok(Some(Self { dir, rel: name.into(), executable: false, force }))
            }
            Destination::Member { dir, path, executable, force } => {
                Ok(Some(Self { dir, rel: path.as_str().into(), executable, force }))
            }
        }
    }

    /// The target that a record names, whose directory must still be there.
    pub(super) fn reopen(
        root: &Path,
        rel: &Path,
        executable: bool,
        force: bool,
    ) -> Result<Self, LibraryError> {
        Ok(Self { dir: Arc::new(OutputDir::open(root)?), rel: rel.to_owned(), executable, force })
    }

    pub(super) fn root(&self) -> &Path {
        self.dir.root()
    }

    pub(super) fn rel(&self) -> &Path {
        &self.rel
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.root().join(&self.rel)
    }

    fn fail(&self, action: &'static str) -> impl Fn(io::Error) -> LibraryError + use<> {
        let path = self.path();
        move |error| LibraryError::io(action, &path, error)
    }

    /// Begins the part file, empty and locked against other processes. Returns it and its inode.
    pub(super) fn create_part(&self) -> Result<(ContentFile, u64), LibraryError> {
        let part = part_path(&self.rel);
        if let Some(parent) = self.rel.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.dir.dir().create_dir_all(parent).map_err(self.fail("create the folders of"))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let file = self.dir.dir().open_with(&part, &options).map_err(self.fail("create"))?.into_std();
        let (file, inode) = self.lock(file)?;
        file.set_len(0).map_err(self.fail("empty"))?;
        Ok((ContentFile::new(self.path(), file), inode))
    }

    /// Opens the part file, if it is still there and the one that it was.
    pub(super) fn open_part(&self, inode: u64) -> Result<Option<ContentFile>, LibraryError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match self.dir.dir().open_with(part_path(&self.rel), &options) {
            Ok(file) => file.into_std(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.fail("open")(error)),
        };
        let (file, found) = self.lock(file)?;
        Ok((found == inode).then(|| ContentFile::new(self.path(), file)))
    }

    fn lock(&self, file: File) -> Result<(File, u64), LibraryError> {
        let metadata = file.metadata().map_err(self.fail("look at"))?;
        if !metadata.is_file() {
            let problem = "its part file is not a regular file";
            return Err(LibraryError::BadPath { path: self.path(), problem });
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                let problem = "another process is filling it";
                return Err(LibraryError::BadPath { path: self.path(), problem });
            }
            // A file system without locks.
            _ => {}
        }
        Ok((file, metadata.ino()))
    }

    /// What is at the path now: `None` if nothing is, and an error if it is no regular file.
    pub(super) fn open_existing(&self) -> Result<Option<(File, Metadata)>, LibraryError> {
        match self.dir.dir().metadata(&self.rel) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(LibraryError::Exists { path: self.path() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.fail("look at")(error)),
        }
        let file = self.dir.dir().open(&self.rel).map_err(self.fail("open"))?.into_std();
        let metadata = file.metadata().map_err(self.fail("look at"))?;
        Ok(Some((file, metadata)))
    }

    /// Gives the filled part file its name. Returns what it looks like then.
    pub(super) fn finish(&self, part: &ContentFile) -> Result<Fingerprint, LibraryError> {
        if self.executable {
            let metadata = part.file().metadata().map_err(self.fail("look at"))?;
            let mode = metadata.mode();
            let permissions = std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2);
            part.file().set_permissions(permissions).map_err(self.fail("make executable"))?;
        }
        let dir = self.dir.dir();
        if !self.force && dir.symlink_metadata(&self.rel).is_ok() {
            return Err(LibraryError::Exists { path: self.path() });
        }
        dir.rename(part_path(&self.rel), dir, &self.rel).map_err(self.fail("rename the part file of"))?;
        Ok(Fingerprint::of(&part.file().metadata().map_err(self.fail("look at"))?))
    }

    /// Makes the file the part file again, if it is the one that was: not all of it survived a power cut.
    pub(super) fn unfinish(&self, inode: u64) -> Result<(), LibraryError> {
        let dir = self.dir.dir();
        match dir.symlink_metadata(&self.rel) {
            Ok(metadata) if MetadataExt::ino(&metadata) == inode => {
                dir.rename(&self.rel, dir, part_path(&self.rel)).map_err(self.fail("rename"))
            }
            _ => Ok(()),
        }
    }

    /// Removes the part file.
    pub(super) fn remove_part(&self, inode: u64) -> Result<(), LibraryError> {
        let part = part_path(&self.rel);
        match self.dir.dir().symlink_metadata(&part) {
            Ok(metadata) if MetadataExt::ino(&metadata) == inode => {
                self.dir.dir().remove_file(&part).map_err(self.fail("remove the part file of"))
            }
            _ => Ok(()),
        }
    }
}

/// The path of the part file beside a file.
fn part_path(rel: &Path) -> PathBuf {
    rel.with_file_name(part_name(rel.file_name().unwrap_or_default()))
}

/// The name of the part file beside a file of this name.
pub(super) fn part_name(name: &OsStr) -> OsString {
    let mut name = name.to_owned();
    if name.len() + PART_SUFFIX.len() > MAX_PART {
        // The name with the suffix would be too long for a file system.
        name = blake3::hash(name.as_bytes()).to_hex()[..32].into();
    }
    name.push(PART_SUFFIX);
    name
}
