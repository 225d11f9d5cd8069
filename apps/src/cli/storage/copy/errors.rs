//! Errors of `enjambre storage copy`.

use std::fmt::Display;

use enjambre_control::{Failure, Status};
use enjambre_core::StorageError;
use enjambre_swarm::library::error::LibraryError;

pub(super) fn same_database() -> Failure {
    Failure::usage("source and target are the same database")
}

/// Returns the failure for a write that is conditional on the mark of this copy.
pub(super) fn write_failed(action: impl Display, error: &StorageError) -> Failure {
    match error {
        StorageError::Conflict => Failure::failed(
            "another copy to the same target was started later and replaces this one; wait until it completes",
        ),
        error => Failure::from_error(Status::Failed, error).context(action),
    }
}

/// Returns the failure for content of the source. Damaged content must be repaired in the source.
pub(super) fn content_failed(action: impl Display, error: &LibraryError) -> Failure {
    library_failure(error, |piece| {
        Failure::failed(format!(
            "{piece} is missing or damaged; run `enjambre verify` with the configuration of the source, then run the copy again"
        ))
    })
    .context(action)
}

/// Returns the failure for content of the target, which is copied again.
pub(super) fn target_failed(action: impl Display, error: &LibraryError) -> Failure {
    library_failure(error, differs).context(action)
}

fn library_failure(error: &LibraryError, damaged: impl FnOnce(&str) -> Failure) -> Failure {
    match error {
        LibraryError::Damaged { id, piece } | LibraryError::MissingPiece { id, piece } => {
            damaged(&format!("piece {piece} of {id}"))
        }
        error => Failure::from_error(Status::Failed, error),
    }
}

pub(super) fn differs(part: &str) -> Failure {
    Failure::failed(format!(
        "{part} differs between source and target; run the copy again, and use neither database during the copy"
    ))
}
