//! The answering side: gives each request of a listener exactly one reply.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::codec;
use super::error::ErrorReply;
use super::message::{Reply, Request};
use crate::model::id::PeerId;
use crate::transport::envelope::{EncodedRequest, RequestId};
use crate::transport::{Incoming, Listener, Message, PeerInfo, ReplySink};

/// Answers requests.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Returns the header of the reply if it is available without waiting and without decoding the request in general.
    /// Otherwise, [`Handler::handle`] is called. The method must return quickly: the following requests wait.
    fn answer_immediately(&self, _request: &EncodedRequest, _peer: &PeerInfo) -> Option<Bytes> {
        None
    }

    /// Returns the reply and its payload. Reserves a large payload at `sink` before reading it.
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply>;
}

/// Answers all requests of a listener until it is shut down, then waits for the requests in progress. Each request that is
/// not answered immediately gets a task. The limits of the transport bound the number of tasks.
pub async fn serve(listener: Arc<dyn Listener>, handler: Arc<dyn Handler>) {
    let tasks = TaskTracker::new();
    while let Ok(incoming) = listener.accept().await {
        if let Some(header) = handler.answer_immediately(&incoming.request, &incoming.peer) {
            let Incoming { peer, reply, .. } = incoming;
            let mut sending = send(reply, peer, Message { header, payload: Bytes::new() }).boxed();
            // Needs no task unless the reply budget is exhausted.
            if futures::poll!(&mut sending).is_pending() {
                tasks.spawn(sending);
            }
            continue;
        }
        let handler = Arc::clone(&handler);
        let span = span(&incoming);
        // Not by `runtime::spawn_in`, which would cost another allocation per request.
        tasks.spawn(async move { answer(&*handler, incoming).await }.instrument(span));
    }
    tasks.close();
    tasks.wait().await;
}

/// The span of a request. It costs nothing while the level `debug` is disabled.
fn span(Incoming { request, peer, .. }: &Incoming) -> Span {
    // The macro evaluates its arguments only if the span is enabled.
    tracing::debug_span!(
        "request",
        kind = request.kind(),
        peer = peer.identity.as_ref().map(PeerId::short).map(display),
        connection = peer.connection.0
    )
}

async fn send(reply: Box<dyn ReplySink>, peer: PeerInfo, message: Message) {
    if let Err(error) = reply.send(message).await {
        tracing::debug!(connection = peer.connection.0, %error, "reply not sent");
    }
}

async fn answer(handler: &dyn Handler, incoming: Incoming) {
    let Incoming { request, peer, mut reply } = incoming;
    let id = request.id();
    let decoded = codec::decode_request(&request);
    // A request can be large, and the handler can take long.
    drop(request);
    let result = match decoded {
        Ok(request) => handler.handle(id, request, &peer, &mut *reply).await,
        Err(error) => Err(error),
    };
    let (header, payload) = match result {
        Ok((answer, payload)) => (codec::encode_reply(Some(id), Ok(&answer)), payload),
        Err(error) => (codec::encode_reply(Some(id), Err(&error)), Bytes::new()),
    };
    send(reply, peer, Message { header, payload }).await;
}
