//! Publishing: hashes a file or directory of the user on all cores, reads it once and links it.
//!
//! Files that the library already links are not read again while their fingerprints are unchanged. With
//! [`PublishOptions::store`] a second pass copies the content into the library, where its place depends on
//! the hash. A directory becomes a collection. Trackers learn of published names from the outbox of the
//! library.

mod hash;
mod import;
mod register;
mod scan;

use std::path::PathBuf;
use std::sync::Arc;

use crate::library::error::{LibraryError, Result};
use crate::library::task::blocking;
use enjambre_core::model::collection::MemberPathError;
use enjambre_core::model::layout::FileTooLarge;
use enjambre_core::model::name::ParseNameError;
use enjambre_core::{CollectionError, FileId, FileKind, Name};

#[cfg(test)]
pub(super) use register::NewPublished;

/// The largest depth of nested directories.
const MAX_DEPTH: usize = 256;

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
}

/// A callback for the progress of hashing.
type ProgressCallback = Arc<dyn Fn(PublishProgress) + Send + Sync>;

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

/// An error of publishing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The library failed.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The path does not exist.
    #[error("no such file or directory")]
    Missing,
    /// The file changed during the read.
    #[error("{} changed while it was read; publish it again after its writer has finished", .0.display())]
    Changed(PathBuf),
    /// The path is not UTF-8. Names in catalogues and collections are.
    #[error("the name of {} is not UTF-8; rename it, or set another name with --name", .0.display())]
    NotUtf8(PathBuf),
    /// The path is neither a file nor a directory.
    #[error("{} is neither a file nor a directory", .0.display())]
    Special(PathBuf),
    /// The directories are nested too deeply.
    #[error("{} is nested more than {MAX_DEPTH} directories deep", .0.display())]
    TooDeep(PathBuf),
    /// The name of the file is not a valid name in a catalogue.
    #[error("invalid name; set another one with --name")]
    Name(#[from] ParseNameError),
    /// The path of a file is not valid in a collection.
    #[error("cannot publish a file of the directory")]
    Path(#[from] MemberPathError),
    /// The directory is not a valid collection.
    #[error("cannot publish the directory")]
    Collection(#[from] CollectionError),
    /// The file is too large.
    #[error("cannot publish {}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The size and its limit.
        #[source]
        source: FileTooLarge,
    },
}

/// Runs blocking work outside of the async workers.
async fn publish_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublishError> + Send + 'static,
) -> Result<T, PublishError> {
    blocking(move || Ok(work())).await?
}

#[cfg(test)]
mod tests;
