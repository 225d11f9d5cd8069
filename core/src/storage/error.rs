//! The errors of a storage, classified by how a caller can react.

use std::path::{Path, PathBuf};

use super::inspect::with_causes;

/// The error of the underlying engine or server.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of a storage. Unless a variant says otherwise, nothing was applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// A condition of the batch does not hold.
    #[error("a condition of the batch does not hold")]
    Conflict,
    /// The key is empty or longer than [`super::value::MAX_KEY`].
    #[error("invalid key of {length} bytes: the length must be 1 to 1024 bytes")]
    InvalidKey {
        /// The length of the key in bytes.
        length: usize,
    },
    /// The value or batch exceeds the limits of the backend, see [`super::Storage::limits`].
    #[error("{what} of {actual} bytes exceeds the limit of {limit} bytes of this storage")]
    TooLarge {
        /// `"value"` or `"batch"`.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
        /// The actual size in bytes.
        actual: usize,
    },
    /// The disk is full or a quota is exhausted. The call may be repeated after space is freed.
    #[error("no space left for the database; free some space, then the operation continues")]
    Full {
        /// The error of the engine.
        #[source]
        source: Source,
    },
    /// The batch may or may not be applied.
    #[error("commit outcome unknown: the storage failed during the commit")]
    Indeterminate {
        /// The error of the engine.
        #[source]
        source: Source,
    },
    /// The storage is being reopened, or its server is unreachable. The call may be repeated.
    #[error("storage unavailable: {reason}")]
    Unavailable {
        /// The reason.
        reason: String,
    },
    /// The storage was closed.
    #[error("storage closed")]
    Closed,
    /// The data on disk is damaged.
    #[error("corrupt database: {what}")]
    Corrupt {
        /// The damage and its location.
        what: String,
        /// The error of the engine, if it detected the damage.
        #[source]
        source: Option<Source>,
    },
    /// Another process has opened the database.
    #[error("{} is in use by another process; stop it, or choose another path", path.display())]
    Locked {
        /// The locked file or directory.
        path: PathBuf,
    },
    /// A newer version of the program wrote the database.
    #[error(
        "{database} has format version {found}, but this program supports only version {supported}; upgrade the program"
    )]
    NewerFormat {
        /// The database.
        database: String,
        /// The version of the database.
        found: u64,
        /// The supported version.
        supported: u64,
    },
    /// Any other failure of the engine.
    #[error("cannot {action}")]
    Backend {
        /// The failed action, for example `open FILE`.
        action: String,
        /// The error of the engine.
        #[source]
        source: Source,
    },
}

impl StorageError {
    /// A failure of the engine during `action`, a verb phrase such as `open FILE`.
    pub fn backend(action: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Backend { action: action.into(), source: source.into() }
    }

    /// Damage of the database at `path` that the engine detected.
    pub fn damaged(path: &Path, source: impl Into<Source>) -> Self {
        let source = source.into();
        let remedy = "check the disk, then restore the database from a backup";
        let what = format!("{}: {}; {remedy}", path.display(), with_causes(&*source));
        Self::Corrupt { what, source: Some(source) }
    }

    /// Damage without an error of the engine.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), source: None }
    }

    /// Copies the error of `action` for another caller. The error of the engine becomes text.
    pub fn copy(&self, action: &str) -> Self {
        match self {
            Self::Full { source } => Self::Full { source: with_causes(&**source).into() },
            Self::Unavailable { reason } => Self::Unavailable { reason: reason.clone() },
            Self::Locked { path } => Self::Locked { path: path.clone() },
            other => Self::backend(action, with_causes(other)),
        }
    }

    /// Returns whether a repeated call may succeed without a repair.
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable { .. })
    }
}
