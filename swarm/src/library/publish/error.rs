//! The errors of publishing.

use std::path::PathBuf;

use super::options::MAX_DEPTH;
use crate::library::error::LibraryError;
use crate::library::task::blocking;
use enjambre_core::model::collection::{CollectionError, MemberPathError};
use enjambre_core::model::layout::FileTooLarge;
use enjambre_core::model::name::ParseNameError;

/// An error of publishing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The library failed.
    #[error(transparent)]
    Library(#[from] LibraryError),
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
pub(super) async fn publish_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublishError> + Send + 'static,
) -> Result<T, PublishError> {
    blocking(move || Ok(work())).await?
}
