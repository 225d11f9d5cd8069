//! The errors of a storage, classified by how a caller can react.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inspect::with_causes;

/// The error of the underlying engine or server, shared by all callers that receive it. It is created from any error or text.
#[derive(Debug, Clone)]
pub struct Source(Arc<dyn Error + Send + Sync>);

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Source {
    fn from(error: E) -> Self {
        Self(error.into().into())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Deref for Source {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// An error of a storage. Unless a variant says otherwise, nothing was applied.
#[derive(Debug, Clone, thiserror::Error)]
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
    #[error("{what} of {actual} {unit} exceeds the limit of {limit} {unit} of this storage")]
    TooLarge {
        /// `"value"` or `"batch"`.
        what: &'static str,
        /// The unit of the limit: `"bytes"`, `"conditions"` or `"writes"`.
        unit: &'static str,
        /// The limit.
        limit: usize,
        /// The actual size.
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

    /// Returns whether a repeated call may succeed without a repair.
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable { .. })
    }
}
