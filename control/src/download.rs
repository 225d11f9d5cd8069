//! Downloads of a peer.

use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::{Endpoint, FileId, FileKind, PeerId, UnixMillis};
use enjambre_swarm::download::queue::{QueueError, Stage};
use enjambre_swarm::download::view::SourceState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::failure::{Failure, Status};
use crate::schema;

/// The downloads of a peer: those of the queue that are not finished in the order in which they start, then those of commands
/// and HTTP clients, then the finished ones in the order in which they finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DownloadList {
    /// The downloads.
    pub downloads: Vec<Download>,
}

/// A download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Download {
    /// The id of the file or directory.
    #[schema(value_type = String)]
    pub id: FileId,
    /// The name of the file or directory.
    pub name: String,
    /// The kind: a claim of the publisher until the content is known.
    #[schema(schema_with = schema::file_kind)]
    pub kind: FileKind,
    /// Size in bytes, of a directory the sum of its files: a claim of the publisher until it is known.
    pub size: u64,
    /// Stored bytes.
    pub done: u64,
    /// The state.
    #[schema(schema_with = schema::stage)]
    pub state: Stage,
    /// Why the download failed, or why its last attempt failed.
    pub error: Option<String>,
    /// Received bytes per second over a few seconds.
    pub rate: u64,
    /// Time to completion at this rate. `null` if it is unknown.
    pub eta_seconds: Option<u64>,
    /// Number of connected providers.
    pub providers: u32,
    /// Position among the downloads of the queue that are not finished, from 0. `null` for other downloads.
    pub position: Option<u64>,
    /// When the download was added, in Unix milliseconds.
    #[schema(value_type = u64)]
    pub added_ms: UnixMillis,
    /// What downloads the file.
    pub origin: DownloadOrigin,
}

/// What downloads a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DownloadOrigin {
    /// The download queue of the peer.
    Api,
    /// A command such as `enjambre get`, or an HTTP client of the gateway. The download ends with it.
    Command,
}

/// A download with its sources and pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DownloadDetail {
    /// The download.
    #[serde(flatten)]
    pub download: Download,
    /// The providers that the download uses or used since its start; the first 252 of them.
    pub sources: Vec<DownloadSource>,
    /// The pieces of a file. `null` for a directory, and before the size of the file is known.
    pub pieces: Option<PieceCells>,
}

/// A provider of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DownloadSource {
    /// The provider.
    #[schema(value_type = String)]
    pub peer: PeerId,
    /// The endpoint of the provider, if it is known.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<Endpoint>,
    /// Received bytes per second over a few seconds.
    pub rate: u64,
    /// Received bytes since the start of the download.
    pub received_bytes: u64,
    /// The connection.
    #[schema(schema_with = schema::source_state)]
    pub state: SourceState,
}

/// The state of the pieces of a file in at most 2048 cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PieceCells {
    /// Number of pieces of the file.
    pub count: u32,
    /// One byte for each cell, in Base64: 0 missing, 1 requested, from 2 on stored and received from the source with this
    /// index plus 2, 255 stored before or received from another source. Cell `i` of `n` shows the piece `i * count / n`,
    /// rounded down.
    pub map: String,
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        let (status, code) = match error {
            QueueError::NotFound(_) => (Status::NotFound, Some(ErrorCode::NotFound)),
            QueueError::Ambiguous(_) => (Status::Usage, Some(ErrorCode::Ambiguous)),
            QueueError::Finished(_) | QueueError::Command(_) => (Status::Failed, Some(ErrorCode::Conflict)),
            QueueError::Full => (Status::Failed, Some(ErrorCode::Busy)),
            QueueError::Library(error) => return error.into(),
            _ => return Self::from_error(Status::Failed, &error),
        };
        Self { code, ..Self::new(status, error) }
    }
}
