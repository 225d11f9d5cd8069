//! The data folder of a node, and the lock that says who owns it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A data folder that this process owns, until it is dropped or the process ends, however that happens.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder where it is missing and takes its lock; none if another process has it. Blocks shortly.
    pub fn try_own(path: &Path) -> Result<Option<Self>, Failure> {
        let context = |error: std::io::Error| {
            Failure::from(error).context(format!("the data folder {} cannot be used", path.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(context)?;
        // A link in the way would otherwise change what a relative database path means to another process.
        let path = path.canonicalize().map_err(context)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(context)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(context(error)),
        }
    }

    /// The folder, without links in its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let owner = DataDir::try_own(&path).unwrap().unwrap();
        assert!(DataDir::try_own(&path).unwrap().is_none());
        drop(owner);
        assert!(DataDir::try_own(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(DataDir::try_own(&path).unwrap_err().message.contains(path.to_str().unwrap()));
    }
}
