//! Which exit status an error of the library, a download or the trackers has.

use enjambre_core::download::DownloadError;
use enjambre_core::library::error::LibraryError;
use enjambre_core::tracker::error::TrackerError;

use crate::failure::{Failure, Status};

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        let status = match &error {
            LibraryError::NotFound { .. } => Status::NotFound,
            LibraryError::Ambiguous { .. } => Status::Usage,
            _ => Status::Failed,
        };
        Self::from_error(status, &error)
    }
}

impl From<TrackerError> for Failure {
    fn from(error: TrackerError) -> Self {
        let status = match &error {
            TrackerError::NotFound { .. } => Status::NotFound,
            TrackerError::Ambiguous { .. } => Status::Usage,
            TrackerError::Unreachable { .. } => Status::Unreachable,
            _ => Status::Failed,
        };
        Self::from_error(status, &error)
    }
}

impl From<&DownloadError> for Failure {
    fn from(error: &DownloadError) -> Self {
        let status = match error {
            DownloadError::Nobody { .. } => Status::Unreachable,
            DownloadError::Library(LibraryError::NotFound { .. }) => Status::NotFound,
            _ => Status::Failed,
        };
        Self::from_error(status, error)
    }
}
