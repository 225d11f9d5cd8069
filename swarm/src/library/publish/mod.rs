//! Publishing: hashes a file or directory of the user on all cores, reads it once and links it.
//!
//! Files that the library already links are not read again while their fingerprints are unchanged. With
//! [`PublishOptions::store`] a second pass copies the content into the library, where its place depends on
//! the hash. A temporary file, hashed by its writer, is moved there. A directory becomes a collection.
//! Trackers learn of published names from the outbox of the library.

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
/// The largest number of reasons for skipped entries.
const MAX_REASONS: usize = 5;

/// Options for publishing.
#[derive(Debug, Clone, Default)]
pub struct PublishOptions {
    /// The name; by default that of the file or directory.
    pub name: Option<Name>,
    /// Copies the content into the library instead of linking the files of the user.
    pub store: bool,
    /// The id of the file with the key of this node, which is never published, not even a copy of it.
    pub secret: Option<FileId>,
    /// Whether a directory with an entry that cannot be published is an error. Otherwise the entry is skipped.
    pub strict: bool,
    /// The entries of a directory to leave out. In a pattern `*` matches any text and `?` one character. A pattern with
    /// `/` is compared with the path of an entry relative to the directory, another one with its name.
    pub exclude: Vec<String>,
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
    /// The entries of the directory that were skipped, without excluded ones.
    pub skipped: Skipped,
}

/// Entries of a directory that were not published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    /// The number of symbolic links.
    pub links: u64,
    /// The number of other entries: special files, and those that cannot be read or named in a collection.
    pub others: u64,
    /// The reasons for the first of the others.
    pub reasons: Vec<String>,
}

impl Skipped {
    fn merge(&mut self, more: Self) {
        self.links += more.links;
        self.others += more.others;
        self.reasons.extend(more.reasons);
        self.reasons.truncate(MAX_REASONS);
    }

    fn add(&mut self, error: &PublishError) {
        self.others += 1;
        if self.reasons.len() < MAX_REASONS {
            self.reasons.push(with_causes(error));
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
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
    /// The file is the key of a node.
    #[error("{} is the key of a node; whoever has it can act as that node", .0.display())]
    Key(PathBuf),
    /// The path is in the data directory of a node, or in a copy of it.
    #[error("it is in {}, the data directory of a node, which contains its key", .0.display())]
    DataDir(PathBuf),
    /// The file changed during the read.
    #[error("{} changed while it was read; publish it again after its writer has finished", .0.display())]
    Changed(PathBuf),
    /// The path is not UTF-8. Names in catalogues and collections are.
    #[error("the name of {} is not UTF-8; rename it, or set another name with --name", .0.display())]
    NotUtf8(PathBuf),
    /// The path is neither a file nor a directory.
    #[error("{} is neither a file nor a directory", .0.display())]
    Special(PathBuf),
    /// The file vanished during the publication.
    #[error("{} vanished", .0.display())]
    Vanished(PathBuf),
    /// The file has more or less content than its size, like the files in `/proc`.
    #[error("{} has no fixed size, like the files in /proc; publish a copy of it", .0.display())]
    UnknownSize(PathBuf),
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
