//! The answering end: takes requests from a listener and gives each exactly one reply.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::task::TaskTracker;

use super::codec;
use super::error::ErrorReply;
use super::message::{Reply, Request};
use crate::transport::envelope::RequestId;
use crate::transport::{Incoming, Listener, Message, PeerInfo, ReplySink};

/// Answers requests.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The header of the reply to a request that is still encoded, where it is known without waiting for anything;
    /// else [`Handler::handle`] is asked. It must not take long: the requests behind it wait.
    fn answer_at_once(&self, _header: &[u8], _peer: &PeerInfo) -> Option<Bytes> {
        None
    }

    /// The reply to a request and its payload. Who sends a large payload reserves it at `sink` before reading it.
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply>;
}

/// Answers every request of the listener, until the listener is shut down; then waits for what is under way. What
/// cannot be answered at once has a task of its own. How many there can be is bounded by the transport's limits.
pub async fn serve(listener: Arc<dyn Listener>, handler: Arc<dyn Handler>) {
    let tasks = TaskTracker::new();
    while let Ok(incoming) = listener.accept().await {
        if let Some(header) = handler.answer_at_once(&incoming.header, &incoming.peer) {
            let Incoming { peer, reply, .. } = incoming;
            let mut sent = Box::pin(send(reply, peer, Message { header, payload: Bytes::new() }));
            // Where there is room for the reply, this is all.
            if futures::poll!(&mut sent).is_pending() {
                tasks.spawn(sent);
            }
            continue;
        }
        let handler = Arc::clone(&handler);
        tasks.spawn(async move { answer(&*handler, incoming).await });
    }
    tasks.close();
    tasks.wait().await;
}

async fn send(reply: Box<dyn ReplySink>, peer: PeerInfo, message: Message) {
    if let Err(error) = reply.send(message).await {
        tracing::debug!(connection = peer.connection.0, %error, "a reply could not be sent");
    }
}

async fn answer(handler: &dyn Handler, incoming: Incoming) {
    let Incoming { header, peer, mut reply } = incoming;
    let decoded = codec::decode_request(&header);
    // The answer may wait for long, and it may be large.
    drop(header);
    let (id, result) = match decoded {
        Ok((id, request)) => (Some(id), handler.handle(id, request, &peer, &mut *reply).await),
        Err(refusal) => (refusal.id, Err(refusal.error)),
    };
    let (header, payload) = match result {
        Ok((answer, payload)) => (codec::encode_reply(id, Ok(&answer)), payload),
        Err(error) => (codec::encode_reply(id, Err(&error)), Bytes::new()),
    };
    send(reply, peer, Message { header, payload }).await;
}
