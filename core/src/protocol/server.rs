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
    /// The reply to a request and its payload. Who sends a large payload reserves it at `sink` before reading it.
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply>;
}

/// Answers every request of the listener, each in a task of its own, until the listener is shut down; then waits
/// for the tasks. How many there can be is bounded by the transport's limits.
pub async fn serve(listener: Arc<dyn Listener>, handler: Arc<dyn Handler>) {
    let tasks = TaskTracker::new();
    while let Ok(incoming) = listener.accept().await {
        let handler = Arc::clone(&handler);
        tasks.spawn(async move { answer(&*handler, incoming).await });
    }
    tasks.close();
    tasks.wait().await;
}

async fn answer(handler: &dyn Handler, incoming: Incoming) {
    let Incoming { header, peer, mut reply } = incoming;
    let (id, result) = match codec::decode_request(&header) {
        Ok((id, request)) => (Some(id), handler.handle(id, request, &peer, &mut *reply).await),
        Err(refusal) => (refusal.id, Err(refusal.error)),
    };
    let (header, payload) = match result {
        Ok((answer, payload)) => (codec::encode_reply(id, Ok(&answer)), payload),
        Err(error) => (codec::encode_reply(id, Err(&error)), Bytes::new()),
    };
    if let Err(error) = reply.send(Message { header, payload }).await {
        tracing::debug!(connection = peer.connection.0, %error, "a reply could not be sent");
    }
}
