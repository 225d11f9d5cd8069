//! Where providers come from, and the questions that a download asks one of them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::schedule::Question;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::PieceLayout;
use crate::model::manifest::{Manifest, PieceHash};
use crate::model::record::Provider;
use crate::protocol::client::{CallError, ask, ask_as, unexpected};
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{HaveWait, Reply, Request};
use crate::transport::dialer::Dialer;
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::{Connection, Deadline};

/// Knows who offers a file: the trackers, or whoever was told beforehand.
#[async_trait]
pub trait ProviderSource: Send + Sync + 'static {
    /// The living providers of the file as far as they are known now; none is no error. An error is a reason in
    /// words why nobody could be asked.
    async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, String>;
}

/// What a provider did that costs it its part in a download, for now or for good.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be reached, went away, or said nothing for too long.
    #[error(transparent)]
    Away(#[from] TransportError),
    /// It has no slot for us now.
    #[error("it is busy")]
    Busy {
        /// When it wants to be asked again.
        retry_after: Duration,
    },
    /// It does not have the file or the piece, or not yet.
    #[error("it does not have it")]
    NotHere,
    /// It gave the piece to somebody else, and so it was with all of the pieces in this bitmap.
    #[error("it gave the piece to somebody else")]
    Elsewhere(Bytes),
    /// It refuses for another reason.
    #[error("it refused: {0}")]
    Refused(String),
    /// It sent what is not part of the file, or broke the protocol.
    #[error("it sent {0}")]
    Lie(&'static str),
}

/// How long to leave a busy provider alone when it does not say.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that a provider may ask for.
const MAX_BUSY_PAUSE: Duration = Duration::from_secs(30);

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Transport(error) => Self::Away(error),
            CallError::Protocol { .. } => Self::Lie("a reply that does not fit the request"),
            CallError::Remote { error, .. } => Self::refused(error),
        }
    }
}

impl Fault {
    /// The fault in an answer that refuses.
    fn refused(error: ErrorReply) -> Self {
        match error.code {
            ErrorCode::Busy => Self::Busy {
                retry_after: error
                    .retry_after_ms
                    .map_or(BUSY_PAUSE, Duration::from_millis)
                    .min(MAX_BUSY_PAUSE),
            },
            ErrorCode::NotFound => Self::NotHere,
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// Connects to a provider: the first of its endpoints, the best before the others, that answers `have`. Returns what it has of the file, in the
/// layout of its own claim.
pub(super) async fn join(
    dialer: &Dialer,
    provider: &Provider,
    id: FileId,
    deadline: Deadline,
) -> Result<(Arc<dyn Connection>, PieceLayout, Bitmap), Fault> {
    let mut fault = Fault::Refused("it told no endpoint of a scheme that is known here".to_owned());
    for endpoint in dialer.preferred(&provider.endpoints) {
        let connection = match dialer.connect(endpoint).await {
            Ok(connection) => connection,
            Err(error) => {
                fault = error.into();
                continue;
            }
        };
        match have(&*connection, id, None, deadline).await {
            Ok((layout, bitmap)) => return Ok((connection, layout, bitmap)),
            Err(Fault::Away(error)) => fault = error.into(),
            Err(other) => return Err(other),
        }
    }
    Err(fault)
}

/// Which pieces of the file the provider has; with `wait`, as soon as that is something new.
pub(super) async fn have(
    connection: &dyn Connection,
    id: FileId,
    wait: Option<HaveWait>,
    deadline: Deadline,
) -> Result<(PieceLayout, Bitmap), Fault> {
    let (Reply::Have { size, complete }, payload) =
        ask(connection, &Request::Have { id, wait }, deadline).await?
    else {
        return Err(unexpected(connection).into());
    };
    let layout = PieceLayout::new(size).map_err(|_| Fault::Lie("a size beyond all limits"))?;
    let bitmap = if complete {
        Bitmap::full(layout)
    } else {
        Bitmap::from_bytes(layout, &payload).map_err(|_| Fault::Lie("a bitmap of another size"))?
    };
    Ok((layout, bitmap))
}

/// Fetches the piece hashes of the file at the size that the provider claims, and proves them against the id.
pub(super) async fn manifest(
    connection: &dyn Connection,
    id: FileId,
    layout: PieceLayout,
    deadline: Deadline,
) -> Result<Manifest, Fault> {
    let count = layout.count() as usize;
    let mut hashes: Vec<PieceHash> = Vec::new();
    if count == 1 {
        hashes.push(*id.as_bytes());
    }
    while hashes.len() < count {
        let first = u32::try_from(hashes.len()).map_err(|_| Fault::Lie("a size beyond all limits"))?;
        let (Reply::Manifest { size }, payload) =
            ask(connection, &Request::Manifest { id, first }, deadline).await?
        else {
            return Err(unexpected(connection).into());
        };
        let (page, rest) = payload.as_chunks::<32>();
        if size != layout.size() || page.is_empty() || !rest.is_empty() || hashes.len() + page.len() > count {
            return Err(Fault::Lie("a list of hashes that does not fit the size"));
        }
        hashes.extend_from_slice(page);
    }
    Manifest::verify(id, layout, hashes).map_err(|_| Fault::Lie("hashes of another file"))
}

/// Fetches one piece under a request id of the connection; its content is not verified. Asked sparingly, it may give
/// [`Fault::Elsewhere`].
pub(super) async fn piece(
    connection: &dyn Connection,
    request: RequestId,
    id: FileId,
    Question { piece, sparing }: Question,
    deadline: Deadline,
) -> Result<Bytes, Fault> {
    let question = Request::Piece { id, index: piece.get(), sparing };
    match ask_as(connection, request, &question, deadline).await? {
        (Reply::Piece, payload) => Ok(payload),
        (Reply::Elsewhere, payload) if sparing => Err(Fault::Elsewhere(payload)),
        _ => Err(unexpected(connection).into()),
    }
}

/// Fetches small files; their content is not verified. The sizes are those of the files from the first on, none for
/// one that is not there; the provider may leave out the last ones.
pub(super) async fn files(
    connection: &dyn Connection,
    ids: Vec<FileId>,
    deadline: Deadline,
) -> Result<(Vec<Option<u64>>, Bytes), Fault> {
    let asked = ids.len();
    let (Reply::Files { sizes }, payload) = ask(connection, &Request::Files { ids }, deadline).await? else {
        return Err(unexpected(connection).into());
    };
    let total = sizes.iter().flatten().try_fold(0_u64, |sum, size| sum.checked_add(*size));
    if sizes.is_empty() || sizes.len() > asked || total != Some(payload.len() as u64) {
        return Err(Fault::Lie("files that do not fit the request"));
    }
    Ok((sizes, payload))
}
