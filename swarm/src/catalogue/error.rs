//! Errors of the catalogue.

use crate::membership::credentials::revocations::MAX_REVOKED;
use enjambre_core::model::id::MIN_PREFIX;
use enjambre_core::model::layout::FileTooLarge;
use enjambre_core::{FileRecord, Name, PeerId, StorageError};

/// An error of the catalogue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The catalogue has nothing with this name or id.
    #[error("{} is not in the catalogue{}", .0, prefix_hint(.0))]
    NotFound(String),
    /// The prefix matches several files.
    #[error("the ids of {} files begin with {prefix}", count_text(*.more, .matches.len()))]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// The files, at most 16.
        matches: Vec<FileRecord>,
        /// Whether there are more.
        more: bool,
    },
    /// The session is void, expired or unknown.
    #[error("the session is not valid; open a new session")]
    Unauthorized,
    /// The session was replaced by a newer one of the same key.
    #[error(
        "another process has opened a session with the same key; give each peer its own data directory, which must not be a copy"
    )]
    Replaced,
    /// The invitation does not exist, or not any more.
    #[error("the invitation is used up, expired, cancelled, or of another swarm; request a new one")]
    NoInvitation,
    /// The peer was revoked.
    #[error("this peer was revoked and cannot rejoin the swarm with the same key")]
    Revoked,
    /// The name is reserved for another peer.
    #[error("the name {name} is reserved for the peer {by}")]
    NameReserved {
        /// The name.
        name: Name,
        /// The peer that may publish it.
        by: PeerId,
    },
    /// The revocation list is full.
    #[error(
        "cannot revoke more than {MAX_REVOKED} peers within a day; create another authority and invite the remaining members again"
    )]
    TooManyRevoked,
    /// Concurrent changes of the same entries caused too many conflicts.
    #[error("concurrent changes of the same entry; try again")]
    Conflict,
    /// A value in the request is not allowed.
    #[error("{0}")]
    Malformed(String),
    /// The quota does not allow the request.
    #[error(
        "{size} bytes exceed the quota ([tracker.store] quota): {reserved} of {quota} bytes are reserved (one peer can reserve half of all)"
    )]
    QuotaFull {
        /// The bytes requested.
        size: u64,
        /// The bytes that others reserve already.
        reserved: u64,
        /// The quota in bytes.
        quota: u64,
    },
    /// Other large requests, especially of the same address, took too long.
    #[error("too many other large requests are in progress, especially from this address; try again later")]
    Busy,
    /// The peer, or all peers together, have the largest number of pins.
    #[error("the limit of {0} pins is reached; remove others with `enjambre unpin`")]
    TooManyPins(u64),
    /// The catalogue has reached [`CatalogueRules::max_peers`](super::CatalogueRules::max_peers).
    #[error("the tracker has reached its limit of peers")]
    TooManyPeers,
    /// The catalogue has reached [`CatalogueRules::max_versions`](super::CatalogueRules::max_versions).
    #[error("the catalogue has reached its limit of files")]
    TooManyFiles,
}

fn prefix_hint(query: &str) -> &'static str {
    let digits = query.trim_matches('"');
    let is_short = digits.len() < MIN_PREFIX && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_short { "; a prefix of an id needs at least 8 digits" } else { "" }
}

fn count_text(more: bool, count: usize) -> String {
    if more { format!("more than {count}") } else { count.to_string() }
}

impl From<FileTooLarge> for CatalogueError {
    fn from(error: FileTooLarge) -> Self {
        Self::Malformed(error.to_string())
    }
}
