//! Where an embedded engine keeps a database: its path, its folder, the room on its disk, and the lock that keeps other
//! processes out of it.

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

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the folder that `path` lies in, with those above it.
pub fn make_folder(path: &Path) -> Result<(), StorageError> {
    let folder = folder_of(path);
    std::fs::create_dir_all(folder)
        .map_err(|error| StorageError::backend(format!("make the folder {}", folder.display()), error))
}

/// Syncs the folder that `path` lies in: only then is a new file found there after a power cut.
pub fn sync_folder(path: &Path) -> Result<(), StorageError> {
    let folder = folder_of(path);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StorageError::backend(format!("sync the folder {}", folder.display()), error))
}

/// Refuses with [`StorageError::Full`] where the disk on which `path` lies has fewer than `needed` bytes free: for engines
/// that bear a full disk badly. A file system that does not tell is taken as large enough.
pub fn check_room(path: &Path, needed: u64) -> Result<(), StorageError> {
    let Ok(stat) = rustix::fs::statvfs(path) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let source = format!("{free} bytes are free, {needed} are needed to go on safely");
    Err(StorageError::Full { source: source.into() })
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
