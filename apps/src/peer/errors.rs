//! The exit status of errors of the library, downloads and trackers.

use enjambre_swarm::download::DownloadError;
use enjambre_swarm::library::error::LibraryError;
use enjambre_swarm::tracker_client::error::TrackerError;

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
            DownloadError::NoProviders { .. } => Status::Unreachable,
            DownloadError::Library(LibraryError::NotFound { .. }) => Status::NotFound,
            _ => Status::Failed,
        };
        Self::from_error(status, error)
    }
}
