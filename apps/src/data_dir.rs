//! The data directory of a node and its lock.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, ResultContext};

/// A data directory that is locked by this process until the value is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if necessary and locks it. Returns `None` if another process holds the lock.
    pub(crate) async fn try_lock(path: &Path) -> Result<Option<Self>, Failure> {
        let folder = path.to_owned();
        let locked = crate::blocking(move || Ok(Self::try_lock_blocking(&folder)?)).await;
        locked.context(format!("cannot use data directory {}", path.display()))
    }

    fn try_lock_blocking(path: &Path) -> std::io::Result<Option<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // Resolves links, so that a relative database path means the same to all processes.
        let path = path.canonicalize()?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Returns the canonical path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn data_directory_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let lock = DataDir::try_lock(&path).await.unwrap().unwrap();
        assert!(DataDir::try_lock(&path).await.unwrap().is_none());
        drop(lock);
        assert!(DataDir::try_lock(&path).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn file_in_place_of_directory_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(DataDir::try_lock(&path).await.unwrap_err().message.contains(path.to_str().unwrap()));
    }
}
