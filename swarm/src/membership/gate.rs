//! A request handler that only serves members: a wrapper around the handler of a peer.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::members::Members;
use enjambre_core::protocol::authorization;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::error::ErrorReply;
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{EncodedRequest, PeerInfo, ReplySink, RequestId};

/// Serves `authorize` requests itself and passes requests of admitted members to another handler.
#[expect(missing_debug_implementations, reason = "it contains a handler")]
pub struct MembershipGate {
    inner: Arc<dyn Handler>,
    members: Arc<Members>,
}

impl MembershipGate {
    /// A gate in front of `inner`.
    pub fn new(inner: Arc<dyn Handler>, members: Arc<Members>) -> Self {
        Self { inner, members }
    }
}

#[async_trait]
impl Handler for MembershipGate {
    /// Answers `authorize` requests before the requests behind them. So a peer can send its first request without waiting
    /// for the reply to `authorize`.
    fn answer_immediately(&self, request: &EncodedRequest, peer: &PeerInfo) -> Option<Bytes> {
        if let Some(membership) = authorization::membership_of(request) {
            let reply = self.members.authorize(peer, &membership).map_err(ErrorReply::from);
            let reply = reply.map(|membership| Reply::Authorized { membership });
            return Some(codec::encode_reply(Some(request.id()), reply.as_ref()));
        }
        self.members.admitted(peer).ok()?;
        self.inner.answer_immediately(request, peer)
    }

    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        if let Request::Authorize { membership } = request {
            let membership = self.members.authorize(peer, &membership)?;
            return Ok((Reply::Authorized { membership }, Bytes::new()));
        }
        self.members.admitted(peer)?.serve(&*self.inner, id, request, peer, sink).await
    }
}
