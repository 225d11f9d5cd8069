//! Where the content of a new file goes, and writing beneath a directory without following links out of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;

use super::error::LibraryError;
use crate::model::collection::MemberPath;

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
        Ok(Self { root, dir })
    }

    /// The absolute path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory.
    pub(crate) const fn dir(&self) -> &Dir {
        &self.dir
    }
}
