//! What a copy says where it cannot go on.

use std::fmt::Display;

use enjambre_core::library::error::LibraryError;
use enjambre_core::storage::error::StorageError;

use crate::failure::{Failure, Status};

pub(super) fn same_database() -> Failure {
    Failure::usage("both configurations have the same database")
}

pub(super) fn failed(what: impl Display, error: &StorageError) -> Failure {
    Failure::from_error(Status::Failed, error).context(what)
}

/// As [`failed`], for what is written only as long as no other copy has taken the target over.
pub(super) fn write_failed(what: impl Display, error: &StorageError) -> Failure {
    match error {
        StorageError::Conflict => Failure::failed(
            "another copy to the same target began meanwhile and goes on in place of this one; wait for it to end",
        ),
        error => failed(what, error),
    }
}

/// Content that is not what the index claims has to be mended where it is.
pub(super) fn content_failed(what: impl Display, error: &LibraryError) -> Failure {
    let failure = match error {
        LibraryError::Damaged { id, piece } | LibraryError::MissingPiece { id, piece } => {
            Failure::failed(format!(
                "piece {piece} of {id} is missing or damaged; run `enjambre verify` with that configuration, and then \
                 the copy again"
            ))
        }
        error => Failure::from_error(Status::Failed, error),
    };
    failure.context(what)
}

/// Content of the target is copied again instead.
pub(super) fn target_failed(what: impl Display, error: &LibraryError) -> Failure {
    let failure = match error {
        LibraryError::Damaged { id, piece } | LibraryError::MissingPiece { id, piece } => {
            differs(&format!("piece {piece} of {id}"))
        }
        error => Failure::from_error(Status::Failed, error),
    };
    failure.context(what)
}

pub(super) fn differs(what: &str) -> Failure {
    let text =
        "is not in the target as it is in the source; start the copy again, and do not use either meanwhile";
    Failure::failed(format!("{what} {text}"))
}
