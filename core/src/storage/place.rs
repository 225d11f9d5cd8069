//! Where an embedded engine keeps a database, and the lock that keeps other processes out of it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::Role;
use super::error::StorageError;

/// The path of the database for a role, from the one in the settings: content lies beside the records, with
/// `-content` before the extension.
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

/// The path with something behind its whole name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Keeps other processes out of the database at `path` for as long as the file returned is open. The lock is on a
/// file of its own, `PATH.lock`. Blocks for no longer than it takes to make that file.
///
/// # Errors
/// [`StorageError::Locked`] where another process has it.
pub fn lock(path: &Path) -> Result<File, StorageError> {
    let name = beside(path, ".lock");
    let failed = |error| StorageError::backend(format!("lock {}", name.display()), error);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
