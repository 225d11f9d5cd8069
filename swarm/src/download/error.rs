//! The error of a download.

use std::sync::Arc;
use std::time::Duration;

use crate::library::error::LibraryError;
use enjambre_core::MemberPath;

/// Why a download did not complete. The verified pieces stay in the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// No reachable provider had a missing piece within the provider timeout.
    #[error("no reachable provider has the missing data after {} s{}", timeout.as_secs(), last_error(reason.as_deref()))]
    NoProviders {
        /// The provider timeout.
        timeout: Duration,
        /// The last error of a provider or tracker.
        reason: Option<String>,
    },
    /// The download was stopped.
    #[error("download stopped; the verified pieces are kept")]
    Cancelled,
    /// The directory has no file or subdirectory with this path.
    #[error("the directory does not contain {0}")]
    NoMember(MemberPath),
    /// The size of the file is proven, and larger than the accepted ones.
    #[error("the file has {size} bytes, more than the accepted maximum of {max} bytes")]
    TooLarge {
        /// The size of the file.
        size: u64,
        /// The largest accepted size.
        max: u64,
    },
    /// The library cannot store the content.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

fn last_error(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" (last error: {reason})"))
}

impl From<LibraryError> for Arc<DownloadError> {
    fn from(error: LibraryError) -> Self {
        Self::new(error.into())
    }
}
