//! Where providers come from, and the questions that a download asks one of them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::schedule::Question;
use crate::model::bitmap::Bitmap;
use crate::model::endpoint::Endpoint;
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
/// The shortest and the longest pause that a provider may ask for.
const MIN_BUSY_PAUSE: Duration = Duration::from_millis(50);
const MAX_BUSY_PAUSE: Duration = Duration::from_secs(30);
/// How long an endpoint of a provider has for itself before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);

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
                    .clamp(MIN_BUSY_PAUSE, MAX_BUSY_PAUSE),
            },
            ErrorCode::NotFound => Self::NotHere,
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// A provider that answered.
pub(super) struct Reached {
    pub(super) connection: Arc<dyn Connection>,
    /// The layout of its own claim.
    pub(super) layout: PieceLayout,
    /// What it has of the file.
    pub(super) have: Bitmap,
    /// How long the answer took. Where the connection was new, as long as a few round trips.
    pub(super) round_trip: Duration,
}

/// Connects to a provider: at the first of its endpoints that answers `have`. The best is tried first; each of the others
/// joins in when those before it have failed or have said nothing for [`HEAD_START`], as in RFC 8305, for packets to one
/// of them may just be dropped.
pub(super) async fn join(
    dialer: &Dialer,
    provider: &Provider,
    id: FileId,
    deadline: Deadline,
) -> Result<Reached, Fault> {
    let attempt = |endpoint: Endpoint| async move {
        let begun = Instant::now();
        let connection = dialer.connect(&endpoint).await?;
        let (layout, have) = have(&*connection, id, None, deadline).await?;
        Ok(Reached { connection, layout, have, round_trip: begun.elapsed() })
    };
    let mut fault = Fault::Refused("it told no endpoint of a scheme that is known here".to_owned());
    let mut waiting = dialer.preferred(provider.peer, &provider.endpoints).into_iter();
    let mut under_way = FuturesUnordered::new();
    loop {
        under_way.extend(waiting.next().map(attempt));
        tokio::select! {
            biased;
            ended = under_way.next() => match ended {
                Some(Err(Fault::Away(error))) => fault = error.into(),
                Some(answered) => return answered,
                None => return Err(fault),
            },
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;
    use crate::protocol::codec;
    use crate::transport::memory::MemoryNetwork;
    use crate::transport::{Listener, Message};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Says that it has all of a file of one byte.
    async fn answer(listener: Arc<dyn Listener>) {
        while let Ok(incoming) = listener.accept().await {
            let (id, _) = codec::decode_request(&incoming.header).unwrap();
            let reply = codec::encode_reply(Some(id), Ok(&Reply::Have { size: 1, complete: true }));
            incoming.reply.send(Message { header: reply, payload: Bytes::new() }).await.unwrap();
        }
    }

    /// Joins a provider at these hosts: nobody is at `closed`, `hole` and `pit` say nothing, and `good` answers. Returns
    /// who answered and after how long.
    async fn joined(hosts: &[&str]) -> (Result<String, Fault>, Duration) {
        let dialer = Dialer::new(vec![MemoryNetwork::new().transport()]);
        let at = |host: &str| format!("memory://{host}:1").parse().unwrap();
        let _silent = [dialer.bind(&at("hole")).await.unwrap(), dialer.bind(&at("pit")).await.unwrap()];
        let good = tokio::spawn(answer(dialer.bind(&at("good")).await.unwrap()));
        let endpoints = hosts.iter().map(|host| at(host)).collect();
        let provider = Provider { peer: PeerId::from_bytes([2; 32]), endpoints, size: 1, complete: true };
        let begin = Instant::now();
        let joined = join(&dialer, &provider, FileId::from_bytes([1; 32]), Deadline::Total(LIMIT)).await;
        good.abort();
        (joined.map(|reached| reached.connection.endpoint().host().to_owned()), begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_says_nothing_holds_the_next_up_for_a_moment_only() {
        let (host, after) = joined(&["hole", "pit", "good"]).await;
        assert_eq!((host.unwrap().as_str(), after.as_millis()), ("good", 2 * HEAD_START.as_millis()));
    }

    #[tokio::test(start_paused = true)]
    async fn behind_an_endpoint_that_fails_the_next_is_tried_at_once() {
        let (host, after) = joined(&["closed", "good", "hole"]).await;
        assert_eq!((host.unwrap().as_str(), after.as_millis()), ("good", 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_answers_nowhere_is_away() {
        let (error, after) = joined(&["hole", "closed", "pit"]).await;
        assert!(matches!(error.unwrap_err(), Fault::Away(TransportError::Deadline { .. })));
        assert_eq!(after.as_millis(), (LIMIT + HEAD_START).as_millis());
        assert!(matches!(joined(&[]).await.0.unwrap_err(), Fault::Refused(_)));
    }
}
