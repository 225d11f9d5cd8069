//! The options, the progress and the result of publishing.

use std::sync::Arc;

use enjambre_core::FileId;
use enjambre_core::model::name::Name;
use enjambre_core::model::record::FileKind;

/// The largest depth of nested directories.
pub(super) const MAX_DEPTH: usize = 256;

/// Options for publishing.
#[derive(Debug, Clone, Default)]
pub struct PublishOptions {
    /// The name; by default that of the file or directory.
    pub name: Option<Name>,
    /// Copies the content into the library instead of linking the files of the user.
    pub store: bool,
}

/// The progress of hashing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishProgress {
    /// The number of hashed bytes.
    pub done: u64,
    /// The number of bytes at the start.
    pub total: u64,
    /// The number of completely hashed files.
    pub files: u64,
}

/// A callback for the progress of hashing.
pub(super) type ProgressCallback = Arc<dyn Fn(PublishProgress) + Send + Sync>;

/// A published file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The id of the file or collection.
    pub id: FileId,
    /// The name.
    pub name: Name,
    /// The kind.
    pub kind: FileKind,
    /// The size of the file or of all files of the directory, in bytes.
    pub size: u64,
    /// The number of files: 1 for a file.
    pub files: u64,
    /// The number of symbolic links in the directory that were skipped.
    pub skipped_links: u64,
}
