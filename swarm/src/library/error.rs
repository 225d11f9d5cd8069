//! The errors of the library.

use std::io;
use std::path::{Path, PathBuf};

use enjambre_core::storage::error::Source;
use enjambre_core::{CollectionError, FileId, StorageError};

/// The result of an operation of the library.
pub type Result<T, E = LibraryError> = std::result::Result<T, E>;

/// An error of the library. Unless a variant says otherwise, the operation changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// The disk is full. Earlier writes persist; the operation may be retried once there is free space.
    #[error("no space left on the disk")]
    Full(#[source] Source),
    /// A linked file was changed or deleted and is withdrawn.
    #[error("{} was changed or deleted; publish it again, or get {id} again", path.display())]
    Changed {
        /// The file that was linked.
        id: FileId,
        /// The path of the linked file.
        path: PathBuf,
    },
    /// The destination contains other content.
    #[error("{} exists with other content; choose another path, or use --force to replace it", .0.display())]
    Exists(PathBuf),
    /// The library does not contain the file with this name, id or prefix of an id.
    #[error("the library does not contain {0:?}")]
    NotFound(String),
    /// The prefix matches several ids.
    #[error("{query:?} is ambiguous; it matches: {}", list(matches))]
    Ambiguous {
        /// The requested prefix.
        query: String,
        /// The first 16 matching files.
        matches: Vec<FileId>,
    },
    /// The piece is not stored.
    #[error("piece {piece} of {id} is not stored")]
    MissingPiece {
        /// The file.
        id: FileId,
        /// The number of the piece.
        piece: u32,
    },
    /// The stored piece is damaged. It was dropped and can be downloaded again.
    #[error("piece {piece} of {id} is damaged on the disk; it will be downloaded again")]
    Damaged {
        /// The file.
        id: FileId,
        /// The number of the piece.
        piece: u32,
    },
    /// Pieces of the file are missing.
    #[error("{id} is incomplete: {have} of {pieces} pieces are stored")]
    Incomplete {
        /// The file.
        id: FileId,
        /// The number of stored pieces.
        have: u32,
        /// The number of all pieces.
        pieces: u32,
    },
    /// The size in the manifest differs from the proven size.
    #[error("{id} has {proven} bytes, not {claimed}")]
    WrongSize {
        /// The file.
        id: FileId,
        /// The proven size in bytes.
        proven: u64,
        /// The size in the manifest, in bytes.
        claimed: u64,
    },
    /// The file is not a collection.
    #[error("{0} is not a collection")]
    NotACollection(FileId),
    /// The content of the collection is not a valid list of files.
    #[error("cannot read the collection")]
    Collection(#[from] CollectionError),
    /// The content store is empty, but the index lists content in it.
    #[error("the content store is empty, but the library lists stored content")]
    ContentMissing,
    /// The content is in the other kind of store.
    #[error(
        "the content of {0} is not in the configured store; restore the previous value of [library] content, or \
         remove the file"
    )]
    OtherStore(FileId),
    /// The path cannot be used.
    #[error("cannot use {}: {problem}", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
        /// The reason.
        problem: &'static str,
    },
    /// The database of the library failed.
    #[error("the database of the library failed")]
    Storage(#[source] StorageError),
    /// An operation on a file or directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, for example "open".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The library is closed.
    #[error("the library is closed")]
    Closed,
}

impl LibraryError {
    /// The error for a failed operation on a path; a full disk becomes [`Self::Full`].
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full(format!("cannot {action} {}: {source}", path.display()).into())
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// The error for a file that the library does not contain.
    pub(crate) fn not_found(query: impl ToString) -> Self {
        Self::NotFound(query.to_string().chars().take(300).collect())
    }

    /// Whether a retry may succeed. This includes a commit with an unknown outcome, since every write of the
    /// library is idempotent.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Full(_) => true,
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
            StorageError::Full { source } => Self::Full(source),
            StorageError::Closed => Self::Closed,
            other => Self::Storage(other),
        }
    }
}

fn list(ids: &[FileId]) -> String {
    ids.iter().map(FileId::to_string).collect::<Vec<_>>().join(", ")
}
