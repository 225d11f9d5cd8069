//! The files of an embedded database: paths, directories, free space, and the lock against other processes.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::error::StorageError;
use super::value::Role;

/// Returns the path of the database for a role. For content, `-content` is inserted before the extension of the configured
/// path.
pub fn path_for(role: Role, path: &Path) -> PathBuf {
    match role {
        Role::Records => path.to_path_buf(),
        Role::Content => {
            let mut name = path.file_stem().unwrap_or_default().to_owned();
            name.push("-content");
            if let Some(extension) = path.extension() {
                name.push(".");
                name.push(extension);
            }
            path.with_file_name(name)
        }
    }
}

/// Appends a suffix to the file name, after its extension.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates the parent directory of `path` and its ancestors, which only this user can enter.
pub fn create_parent_dir(path: &Path) -> Result<(), StorageError> {
    let parent = parent_of(path);
    create_private_dir(parent)
        .map_err(|error| StorageError::backend(format!("create the directory {}", parent.display()), error))
}

/// Creates a directory and its ancestors, which only this user can enter. Durable on return.
pub fn create_private_dir(path: &Path) -> std::io::Result<()> {
    create_dir(path, 0o700)
}

/// Creates a directory and its missing ancestors with this mode. Durable on return, except in a directory that this user
/// cannot read and therefore cannot sync.
pub fn create_dir(path: &Path, mode: u32) -> std::io::Result<()> {
    let create = || DirBuilder::new().mode(mode).create(path);
    let parent = parent_of(path);
    let created = match create() {
        Err(error) if error.kind() == ErrorKind::NotFound && parent != Path::new(".") => {
            create_dir(parent, mode).and_then(|()| create())
        }
        created => created,
    };
    if created.is_err() && path.is_dir() {
        return Ok(());
    }
    created?;
    match File::open(parent) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        opened => sync_dir(&opened?),
    }
}

/// Creates an empty file that only this user can read and write. Never opens an existing file or a link.
pub fn create_private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Rejects a file with a secret that other users can read or write. As in libpq, the group can read a file of root.
pub fn check_secret_file(path: &Path) -> std::io::Result<()> {
    let found = std::fs::metadata(path)?;
    let forbidden = if found.uid() == 0 { 0o027 } else { 0o077 };
    if found.mode() & forbidden == 0 {
        return Ok(());
    }
    let text = "other users can read or write the file; run `chmod 600` on it";
    Err(std::io::Error::new(ErrorKind::PermissionDenied, text))
}

/// Syncs the parent directory of `path`, so that a new file there survives a power failure.
pub fn sync_parent_dir(path: &Path) -> Result<(), StorageError> {
    let parent = parent_of(path);
    File::open(parent)
        .and_then(|parent| sync_dir(&parent))
        .map_err(|error| StorageError::backend(format!("sync the directory {}", parent.display()), error))
}

/// Syncs an open directory. Succeeds if its file system cannot sync directories, as some network file systems.
pub fn sync_dir(dir: &File) -> std::io::Result<()> {
    match rustix::fs::fsync(dir) {
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
        synced => Ok(synced?),
    }
}

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// The bytes that this process may occupy.
    pub free: u64,
    /// The size in bytes.
    pub size: u64,
}

impl DiskSpace {
    /// Returns the space of the file system of `path`, or `None` if the file system does not report it.
    pub fn of(path: &Path) -> Option<Self> {
        Self::from_stat(rustix::fs::statvfs(path))
    }

    fn from_stat(stat: rustix::io::Result<StatVfs>) -> Option<Self> {
        let stat = stat.ok().filter(|stat| stat.f_blocks > 0)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some(Self { free: bytes(stat.f_bavail), size: bytes(stat.f_blocks) })
    }
}

/// Checks the free space of the file system of `path`, for engines that do not recover from a full disk. A file system that
/// does not report its free space passes.
///
/// # Errors
/// [`StorageError::Full`] if fewer than `needed` bytes are free.
pub fn check_free_space(path: &Path, needed: u64) -> Result<(), StorageError> {
    check_stat(rustix::fs::statvfs(path), path, needed)
}

/// Same as [`check_free_space`], for an open file or directory. The error shows `path`.
pub fn check_free_space_at(file: impl AsFd, path: &Path, needed: u64) -> Result<(), StorageError> {
    check_stat(rustix::fs::fstatvfs(file), path, needed)
}

fn check_stat(stat: rustix::io::Result<StatVfs>, path: &Path, needed: u64) -> Result<(), StorageError> {
    let Some(DiskSpace { free, .. }) = DiskSpace::from_stat(stat) else { return Ok(()) };
    if free >= needed {
        return Ok(());
    }
    let path = path.display();
    let source = format!("the disk of {path} has {free} free bytes, but {needed} are required");
    Err(StorageError::Full { source: source.into() })
}

/// Opens a database with `open`. If the disk is full, it deletes the file `PATH.spare`, so that an opening finds some free
/// space, and tries once more. Afterwards it creates that file with `spare_bytes` unless the disk is nearly full.
pub fn open_on_full_disk<T>(
    path: &Path,
    spare_bytes: u64,
    open: impl Fn() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    let spare = with_suffix(path, ".spare");
    let opened = match open() {
        Err(StorageError::Full { .. }) if std::fs::remove_file(&spare).is_ok() => open()?,
        result => result?,
    };
    // The database works without the file, too.
    if !spare.exists()
        && check_free_space(path, spare_bytes * 4).is_ok()
        && create_spare(&spare, spare_bytes).is_err()
    {
        let _ = std::fs::remove_file(&spare);
    }
    Ok(opened)
}

fn create_spare(path: &Path, bytes: u64) -> std::io::Result<()> {
    let file = create_private_file(path)?;
    // A sparse file would occupy no space.
    Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?)
}

/// An exclusive lock of a file. Released when dropped.
#[derive(Debug)]
#[must_use]
pub struct FileLock(File);

impl FileLock {
    /// Locks the file at `path` and creates it if necessary. Returns `None` if another process holds the lock, or has
    /// deleted the file in the meantime.
    pub fn try_acquire(path: &Path) -> std::io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        Self::try_lock(options.create(true).truncate(false).write(true).mode(0o600).open(path)?, path)
    }

    fn try_lock(file: File, path: &Path) -> std::io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => {
                let lock = Self(file);
                let inode = lock.0.metadata()?.ino();
                let is_at_path = std::fs::metadata(path).is_ok_and(|found| found.ino() == inode);
                Ok(is_at_path.then_some(lock))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process between fork and exec holds a copy of the descriptor.
        let _ = self.0.unlock();
    }
}

/// Locks the database at `path` against other processes. The lock file is `PATH.lock`. Does not wait for the lock.
///
/// # Errors
/// [`StorageError::Locked`] if another process holds the lock.
pub fn lock(path: &Path) -> Result<FileLock, StorageError> {
    let name = with_suffix(path, ".lock");
    FileLock::try_acquire(&name)
        .map_err(|error| StorageError::backend(format!("lock {}", name.display()), error))?
        .ok_or_else(|| StorageError::Locked { path: path.to_path_buf() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_succeeds_where_it_is_not_supported() {
        let dir = tempfile::tempdir().unwrap();
        sync_dir(&File::open(dir.path()).unwrap()).unwrap();
        let device = File::open("/dev/null").unwrap();
        assert_eq!(rustix::fs::fsync(&device), Err(Errno::INVAL));
        sync_dir(&device).unwrap();
    }

    #[test]
    fn deleted_lock_file_is_not_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let open = || File::create(&path).unwrap();
        let deleted = open();
        std::fs::remove_file(&path).unwrap();
        assert!(FileLock::try_lock(deleted.try_clone().unwrap(), &path).unwrap().is_none());
        // Another process has created it again.
        let current = open();
        assert!(FileLock::try_lock(deleted, &path).unwrap().is_none());
        assert!(FileLock::try_lock(current, &path).unwrap().is_some());
    }

    #[test]
    fn dropped_lock_is_free_despite_copies_of_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("database");
        let held = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(StorageError::Locked { .. })));
        // As in a child process before exec.
        let _copy = held.0.try_clone().unwrap();
        drop(held);
        drop(lock(&path).unwrap());
    }
}
