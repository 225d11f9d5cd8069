//! Provider lookup, and the requests that a download sends to one provider.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::provider_dialer::ProviderDialer;
use super::schedule::PieceRequest;
use enjambre_core::model::manifest::PieceHash;
use enjambre_core::protocol::client::{CallError, call, call_with_id, unexpected};
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{HaveWait, Reply, Request};
use enjambre_core::{
    Bitmap, Connection, Deadline, Endpoint, FileId, Manifest, PieceLayout, Provider, RequestId,
    TransportError,
};

/// Looks up the providers of a file, usually at trackers.
#[async_trait]
pub trait ProviderSource: Send + Sync + 'static {
    /// Returns the live providers of the file that are currently known; an empty list is not an error. The error is a
    /// message that says why the lookup failed.
    async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, String>;
}

/// Why a request to a provider failed.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The provider is unreachable, closed the connection, or was silent for too long.
    #[error(transparent)]
    Unreachable(#[from] TransportError),
    /// The provider has no free slot.
    #[error("provider is busy")]
    Busy {
        /// When to retry.
        retry_after: Duration,
    },
    /// The provider does not have the file or the piece yet.
    #[error("provider does not have the data")]
    NotFound,
    /// The provider already sent the piece to another peer, as well as all pieces in this bitmap.
    #[error("provider already sent the piece to another peer")]
    AlreadySent(Bytes),
    /// The provider refused the request for another reason.
    #[error("request refused: {0}")]
    Refused(String),
    /// The provider sent data that does not belong to the file, or violated the protocol.
    #[error("provider sent invalid data: {0}")]
    InvalidData(&'static str),
}

/// Backoff for a busy provider that does not suggest one.
const DEFAULT_BUSY_BACKOFF: Duration = Duration::from_millis(200);
/// Bounds of the backoff that a provider may suggest.
const MIN_BUSY_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BUSY_BACKOFF: Duration = Duration::from_secs(30);
/// Time before the next endpoint of a provider is tried in parallel.
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(300);

impl From<CallError> for ProviderError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Transport(error) => Self::Unreachable(error),
            CallError::Protocol { .. } => Self::InvalidData("reply does not match the request"),
            CallError::Remote { error, .. } => error.into(),
        }
    }
}

impl From<ErrorReply> for ProviderError {
    fn from(error: ErrorReply) -> Self {
        match error.code {
            ErrorCode::Busy => Self::Busy {
                retry_after: error
                    .retry_after_ms
                    .map_or(DEFAULT_BUSY_BACKOFF, Duration::from_millis)
                    .clamp(MIN_BUSY_BACKOFF, MAX_BUSY_BACKOFF),
            },
            ErrorCode::NotFound => Self::NotFound,
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// A provider that replied to `have`.
pub(super) struct ConnectedProvider {
    pub(super) connection: Arc<dyn Connection>,
    /// The layout for the size that the provider claims.
    pub(super) layout: PieceLayout,
    pub(super) have: Bitmap,
    /// The time to the reply. Includes the handshake of a new connection.
    pub(super) round_trip: Duration,
}

/// Connects to the first endpoint of a provider that replies to `have`.
///
/// Endpoints are tried in order of preference, and the next one starts when the previous ones failed or after
/// [`CONNECTION_ATTEMPT_DELAY`], as in RFC 8305, since an endpoint may drop packets silently.
pub(super) async fn connect(
    dialer: &ProviderDialer,
    provider: &Provider,
    id: FileId,
    deadline: Deadline,
) -> Result<ConnectedProvider, ProviderError> {
    let attempt_at = |endpoint: Endpoint| async move {
        let start = Instant::now();
        let connection = dialer.connect(&endpoint).await?;
        let (layout, have) = have(&*connection, id, None, deadline).await?;
        Ok::<_, ProviderError>(ConnectedProvider { connection, layout, have, round_trip: start.elapsed() })
    };
    let attempt = |endpoint: Endpoint| async move {
        let mut addresses = dialer.resolve(&endpoint).await?.into_iter().peekable();
        loop {
            let result = attempt_at(addresses.next().unwrap_or_else(|| endpoint.clone())).await;
            let is_unreachable = matches!(result, Err(ProviderError::Unreachable(_)));
            if !is_unreachable || addresses.peek().is_none() {
                return result;
            }
        }
    };
    let mut failure = ProviderError::Refused("no endpoint with a supported scheme".to_owned());
    let mut endpoints = dialer.preferred(provider.peer, &provider.endpoints).into_iter();
    let mut attempts = FuturesUnordered::new();
    loop {
        attempts.extend(endpoints.next().map(attempt));
        tokio::select! {
            biased;
            result = attempts.next() => match result {
                Some(Err(ProviderError::Unreachable(error))) => failure = error.into(),
                Some(result) => return result,
                None => return Err(failure),
            },
            () = tokio::time::sleep(CONNECTION_ATTEMPT_DELAY), if endpoints.len() > 0 => {}
        }
    }
}

/// Requests the pieces that the provider has. With `wait` the provider delays the reply until its pieces change.
pub(super) async fn have(
    connection: &dyn Connection,
    id: FileId,
    wait: Option<HaveWait>,
    deadline: Deadline,
) -> Result<(PieceLayout, Bitmap), ProviderError> {
    let (Reply::Have { size, complete }, payload) =
        call(connection, &Request::Have { id, wait }, deadline).await?
    else {
        return Err(unexpected(connection).into());
    };
    let layout = PieceLayout::new(size).map_err(|_| ProviderError::InvalidData("size exceeds the limit"))?;
    let bitmap = if complete {
        Bitmap::full(layout)
    } else {
        Bitmap::from_bytes(layout, &payload)
            .map_err(|_| ProviderError::InvalidData("bitmap does not match the size"))?
    };
    Ok((layout, bitmap))
}

/// Fetches the piece hashes for the size that the provider claims, and verifies them against the file id.
pub(super) async fn manifest(
    connection: &dyn Connection,
    id: FileId,
    layout: PieceLayout,
    deadline: Deadline,
) -> Result<Manifest, ProviderError> {
    let count = layout.count() as usize;
    let mut hashes: Vec<PieceHash> = Vec::new();
    if count == 1 {
        hashes.push(*id.as_bytes());
    }
    while hashes.len() < count {
        let first = hashes.len() as u32;
        let (Reply::Manifest { size }, payload) =
            call(connection, &Request::Manifest { id, first }, deadline).await?
        else {
            return Err(unexpected(connection).into());
        };
        let (page, rest) = payload.as_chunks::<32>();
        if size != layout.size() || page.is_empty() || !rest.is_empty() || hashes.len() + page.len() > count {
            return Err(ProviderError::InvalidData("hash list does not match the size"));
        }
        hashes.extend_from_slice(page);
    }
    Manifest::verify(id, layout, hashes).map_err(|_| ProviderError::InvalidData("hashes of another file"))
}

/// Fetches one piece; the content is not verified. A request with `super_seed` may fail with
/// [`ProviderError::AlreadySent`].
pub(super) async fn piece(
    connection: &dyn Connection,
    request_id: RequestId,
    id: FileId,
    PieceRequest { piece, super_seed }: PieceRequest,
    deadline: Deadline,
) -> Result<Bytes, ProviderError> {
    let request = Request::Piece { id, index: piece.get(), super_seed };
    match call_with_id(connection, request_id, &request, deadline).await? {
        (Reply::Piece, payload) => Ok(payload),
        (Reply::AlreadySent, payload) if super_seed => Err(ProviderError::AlreadySent(payload)),
        _ => Err(unexpected(connection).into()),
    }
}

/// Fetches small files; the content is not verified. The sizes belong to the first ids in order, `None` for a file that
/// the provider does not have. The provider may leave out the last ids.
pub(super) async fn files(
    connection: &dyn Connection,
    ids: Vec<FileId>,
    deadline: Deadline,
) -> Result<(Vec<Option<u64>>, Bytes), ProviderError> {
    let requested = ids.len();
    let (Reply::Files { sizes }, payload) = call(connection, &Request::Files { ids }, deadline).await? else {
        return Err(unexpected(connection).into());
    };
    let total = sizes.iter().flatten().try_fold(0_u64, |sum, size| sum.checked_add(*size));
    if sizes.is_empty() || sizes.len() > requested || total != Some(payload.len() as u64) {
        return Err(ProviderError::InvalidData("file sizes do not match the request"));
    }
    Ok((sizes, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::protocol::codec;
    use enjambre_core::transport::memory::MemoryNetwork;
    use enjambre_core::{Dialer, Listener, Message, PeerId};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Replies to every request as a complete provider of a file of one byte.
    async fn serve_one_byte(listener: Arc<dyn Listener>) {
        while let Ok(incoming) = listener.accept().await {
            let id = incoming.request.id();
            let reply = codec::encode_reply(Some(id), Ok(&Reply::Have { size: 1, complete: true }));
            incoming.reply.send(Message { header: reply, payload: Bytes::new() }).await.unwrap();
        }
    }

    /// Connects to a provider at these hosts: `closed` refuses connections, `hole` and `pit` never reply, and `good`
    /// replies. Returns the host that replied and the elapsed time.
    async fn connect_to(hosts: &[&str]) -> (Result<String, ProviderError>, Duration) {
        let dialer = Arc::new(Dialer::new(vec![MemoryNetwork::new().transport()]));
        let at = |host: &str| format!("memory://{host}:1").parse().unwrap();
        let _silent = [dialer.bind(&at("hole")).await.unwrap(), dialer.bind(&at("pit")).await.unwrap()];
        let good = tokio::spawn(serve_one_byte(dialer.bind(&at("good")).await.unwrap()));
        let endpoints = hosts.iter().map(|host| at(host)).collect();
        let provider = Provider { peer: PeerId::from_bytes([2; 32]), endpoints, size: 1, complete: true };
        let start = Instant::now();
        let connected = connect(
            &ProviderDialer::new(dialer),
            &provider,
            FileId::from_bytes([1; 32]),
            Deadline::Total(LIMIT),
        )
        .await;
        good.abort();
        (connected.map(|connected| connected.connection.endpoint().host().to_owned()), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_endpoint_delays_next_by_fixed_delay() {
        let (host, after) = connect_to(&["hole", "pit", "good"]).await;
        let expected = 2 * CONNECTION_ATTEMPT_DELAY.as_millis();
        assert_eq!((host.unwrap().as_str(), after.as_millis()), ("good", expected));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_endpoint_starts_next_at_once() {
        let (host, after) = connect_to(&["closed", "good", "hole"]).await;
        assert_eq!((host.unwrap().as_str(), after.as_millis()), ("good", 0));
    }

    #[tokio::test(start_paused = true)]
    async fn provider_without_reply_is_unreachable() {
        let (error, after) = connect_to(&["hole", "closed", "pit"]).await;
        assert!(matches!(error.unwrap_err(), ProviderError::Unreachable(TransportError::Deadline { .. })));
        assert_eq!(after.as_millis(), (LIMIT + CONNECTION_ATTEMPT_DELAY).as_millis());
        assert!(matches!(connect_to(&[]).await.0.unwrap_err(), ProviderError::Refused(_)));
    }
}
