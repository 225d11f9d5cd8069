//! A request handler that only serves members: a wrapper around the handler of a tracker.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::admission::Admission;
use enjambre_core::model::membership::Rights;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{EncodedRequest, PeerInfo, ReplySink, RequestId};

/// Passes requests of members to another handler. Non-members can only query the catalogue's id, `join` and `authorize`.
#[expect(missing_debug_implementations, reason = "it contains a handler")]
pub struct TrackerGate {
    inner: Arc<dyn Handler>,
    admission: Arc<Admission>,
}

impl TrackerGate {
    /// A gate in front of `inner`.
    pub fn new(inner: Arc<dyn Handler>, admission: Arc<Admission>) -> Self {
        Self { inner, admission }
    }
}

#[async_trait]
impl Handler for TrackerGate {
    fn answer_immediately(&self, request: &EncodedRequest, peer: &PeerInfo) -> Option<Bytes> {
        self.admission.admitted(peer)?;
        self.inner.answer_immediately(request, peer)
    }

    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        match &request {
            Request::OpenSession { proof: None } => return self.inner.handle(id, request, peer, sink).await,
            Request::Join { secret } => return Ok((self.admission.join(secret, peer).await?, Bytes::new())),
            Request::Authorize { membership } => {
                return Ok((self.admission.authorize(peer, membership).await?, Bytes::new()));
            }
            _ => {}
        }
        let member = match self.admission.admitted(peer) {
            Some(member) => member,
            None => self.admission.admit(peer).await?,
        };
        let known = match &request {
            Request::Publish { .. } | Request::Pin { .. } | Request::Unpin { .. }
                if member.rights == Rights::ReadOnly =>
            {
                let message = "this peer was invited with read-only rights; it cannot publish or pin files";
                return Err(ErrorReply::new(ErrorCode::Forbidden, message));
            }
            Request::Renew { membership, .. } => *membership,
            _ => None,
        };
        let (mut reply, payload) = member.serve(&*self.inner, id, request, peer, sink).await?;
        match &mut reply {
            Reply::Renewed { membership, revocations, more, .. } => {
                if let Some(known) = known {
                    (*membership, *revocations, *more) = self.admission.renew(&member.id, known).await?;
                }
            }
            Reply::OpenSession { grant: Some(grant), .. } => {
                grant.membership = Some(self.admission.membership(&member.id).await?);
            }
            _ => {}
        }
        Ok((reply, payload))
    }
}
