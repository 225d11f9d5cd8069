//! What can go wrong in the library, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::collection::CollectionError;
use crate::model::id::FileId;
use crate::storage::error::{Source, StorageError};

/// An error of the library. Where not said otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// No room on the disk. May be repeated once there is room; what was written before stays.
    #[error("there is no room left on the disk; free some space and it goes on")]
    Full {
        /// The error beneath.
        #[source]
        source: Source,
    },
    /// A linked file is not what it was when it was linked. It is not offered any more.
    #[error(
        "{} is no longer the file that was published or downloaded; publish it again, or get {id} again",
        path.display()
    )]
    Changed {
        /// The file that it was.
        id: FileId,
        /// Where it was.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("{} exists with other content; choose another path, or use --force to replace it", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The library has no such file.
    #[error("the library has no file {query:?}")]
    NotFound {
        /// The name, id or prefix that was asked for.
        query: String,
    },
    /// More than one file has an id that begins so.
    #[error("{query:?} is the beginning of several ids: {}", list(matches))]
    Ambiguous {
        /// The prefix that was asked for.
        query: String,
        /// The first 16 of the files.
        matches: Vec<FileId>,
    },
    /// The piece is not here.
    #[error("piece {piece} of {id} is not here")]
    MissingPiece {
        /// The file.
        id: FileId,
        /// The number of the piece.
        piece: u32,
    },
    /// The piece that was kept is not what was written. It is no longer claimed and can be fetched again.
    #[error("piece {piece} of {id} is damaged on the disk; it will be fetched again")]
    Damaged {
        /// The file.
        id: FileId,
        /// The number of the piece.
        piece: u32,
    },
    /// Pieces of the file are missing.
    #[error("{id} is not complete: {have} of {pieces} pieces are here")]
    Incomplete {
        /// The file.
        id: FileId,
        /// The pieces that are here.
        have: u32,
        /// All of its pieces.
        pieces: u32,
    },
    /// The manifest gives another size than the one that is proven.
    #[error("{id} has {proven} bytes, not {claimed}")]
    WrongSize {
        /// The file.
        id: FileId,
        /// The proven size in bytes.
        proven: u64,
        /// The size given, in bytes.
        claimed: u64,
    },
    /// The entry is not a collection, or is one where a file is needed.
    #[error("{id} is not a collection")]
    NotACollection {
        /// The entry.
        id: FileId,
    },
    /// The content of a collection is not the list of a directory.
    #[error("the collection cannot be read")]
    Collection(#[from] CollectionError),
    /// The content was kept in the other kind of store.
    #[error(
        "the content of {id} is not in the store that is configured; set [library] content back, or remove it"
    )]
    OtherStore {
        /// The file.
        id: FileId,
    },
    /// The path cannot be used.
    #[error("{} cannot be used: {problem}", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The database beneath failed.
    #[error("the library's database failed")]
    Storage(#[source] StorageError),
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: "open", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The library was closed.
    #[error("the library is closed")]
    Closed,
}

impl LibraryError {
    /// A failure of the system while it tried to do `action` with `path`; a full disk becomes [`Self::Full`].
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { source: source.into() },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// The library has no such file.
    pub(crate) fn not_found(query: impl ToString) -> Self {
        Self::NotFound { query: query.to_string().chars().take(300).collect() }
    }

    /// Whether the same call may succeed later without anything being mended in the program. That includes a write of
    /// which it is not known whether it was applied: every write of the library can be made twice.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Storage(error) => {
                error.is_temporary() || matches!(error, StorageError::Indeterminate { .. })
            }
            _ => false,
        }
    }
}

impl From<StorageError> for LibraryError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } => Self::Full { source: error.into() },
            StorageError::Closed => Self::Closed,
            other => Self::Storage(other),
        }
    }
}

fn list(ids: &[FileId]) -> String {
    ids.iter().map(FileId::to_string).collect::<Vec<_>>().join(", ")
}
