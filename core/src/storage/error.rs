//! What can go wrong in a storage, by what the caller can do about it.

use std::path::{Path, PathBuf};

/// The error of the engine beneath, kept as the source.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of a storage. Where not said otherwise, nothing was applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// A condition of the batch does not hold.
    #[error("a condition of the batch does not hold")]
    Conflict,
    /// The key is empty or longer than [`super::value::MAX_KEY`].
    #[error("a key has 1 to 1024 bytes, not {length}")]
    InvalidKey {
        /// The length given, in bytes.
        length: usize,
    },
    /// Beyond what the backend can hold, see [`super::Storage::limits`].
    #[error("a {what} of {actual} bytes is larger than the {limit} bytes that this storage holds")]
    TooLarge {
        /// `"value"` or `"batch"`.
        what: &'static str,
        /// The largest, in bytes.
        limit: usize,
        /// The size given, in bytes.
        actual: usize,
    },
    /// No room on the disk, or a quota is used up. May be repeated once there is room.
    #[error("the storage is full; free some space and it goes on")]
    Full {
        /// The engine's error.
        #[source]
        source: Source,
    },
    /// It is not known whether the batch was applied.
    #[error("the storage failed in the middle of a commit; whether it was applied is not known")]
    Indeterminate {
        /// The engine's error.
        #[source]
        source: Source,
    },
    /// The storage cannot answer at the moment: it is being reopened, or the server is away. May be repeated.
    #[error("the storage is not available at the moment: {reason}")]
    Unavailable {
        /// Why, in a few words.
        reason: String,
    },
    /// The storage was closed.
    #[error("the storage is closed")]
    Closed,
    /// What is on the disk is not what was written.
    #[error("the storage is damaged: {what}")]
    Corrupt {
        /// What was found, and where.
        what: String,
        /// The engine's error, if it noticed.
        #[source]
        source: Option<Source>,
    },
    /// Another process has the database open.
    #[error("{} is in use by another process; stop it, or choose another path", path.display())]
    Locked {
        /// The file or folder that is locked.
        path: PathBuf,
    },
    /// The database was written by a newer version.
    #[error(
        "{} has format version {found}, but this program reads up to {supported}; use a newer program",
        path.display()
    )]
    NewerFormat {
        /// The database.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The newest version that is understood.
        supported: u64,
    },
    /// Any other failure of the engine.
    #[error("the storage failed while it tried to {action}")]
    Backend {
        /// What was tried.
        action: String,
        /// The engine's error.
        #[source]
        source: Source,
    },
}

impl StorageError {
    /// A failure of the engine while it tried to do `action` ("open FILE").
    pub fn backend(action: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Backend { action: action.into(), source: source.into() }
    }

    /// Damage of the database at a path, which the engine noticed.
    pub fn damaged(path: &Path, source: impl Into<Source>) -> Self {
        Self::Corrupt { what: path.display().to_string(), source: Some(source.into()) }
    }

    /// Damage without an error of the engine.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), source: None }
    }

    /// Whether the same call may succeed later without anything being mended in the program.
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable { .. })
    }
}
