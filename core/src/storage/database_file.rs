//! The files of an embedded database: paths, directories, free space, and the lock against other processes.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

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

/// Creates the parent directory of `path` and its ancestors.
pub fn create_parent_dir(path: &Path) -> Result<(), StorageError> {
    let parent = parent_of(path);
    std::fs::create_dir_all(parent)
        .map_err(|error| StorageError::backend(format!("create the directory {}", parent.display()), error))
}

/// Syncs the parent directory of `path`, so that a new file there survives a power failure.
pub fn sync_parent_dir(path: &Path) -> Result<(), StorageError> {
    let parent = parent_of(path);
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| StorageError::backend(format!("sync the directory {}", parent.display()), error))
}

/// Checks the free space of the file system of `path`, for engines that do not recover from a full disk. A file system that
/// does not report its free space passes.
///
/// # Errors
/// [`StorageError::Full`] if fewer than `needed` bytes are free.
pub fn check_free_space(path: &Path, needed: u64) -> Result<(), StorageError> {
    let Ok(stat) = rustix::fs::statvfs(path) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let source = format!("{free} bytes are free, but {needed} are required");
    Err(StorageError::Full { source: source.into() })
}

/// Locks the database at `path` against other processes until the returned file is closed. The lock file is `PATH.lock`. Does
/// not wait for the lock.
///
/// # Errors
/// [`StorageError::Locked`] if another process holds the lock.
pub fn lock(path: &Path) -> Result<File, StorageError> {
    let name = with_suffix(path, ".lock");
    let failed = |error| StorageError::backend(format!("lock {}", name.display()), error);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
