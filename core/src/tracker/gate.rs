//! Keeps out who asks a tracker without being a member: a wrapper around whatever answers at the tracker's endpoints.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::admission::Admission;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{Reply, Request};
use crate::protocol::server::Handler;
use crate::swarm::membership::Rights;
use crate::transport::envelope::RequestId;
use crate::transport::{PeerInfo, ReplySink};

/// Answers members, and of others what they need to become some.
#[expect(missing_debug_implementations, reason = "a handler is behind it")]
pub struct Gate {
    inner: Arc<dyn Handler>,
    admission: Arc<Admission>,
}

impl Gate {
    /// In front of what answers members.
    pub fn new(inner: Arc<dyn Handler>, admission: Arc<Admission>) -> Self {
        Self { inner, admission }
    }
}

#[async_trait]
impl Handler for Gate {
    fn answer_at_once(&self, header: &[u8], peer: &PeerInfo) -> Option<Bytes> {
        self.admission.guest(peer)?;
        self.inner.answer_at_once(header, peer)
    }

    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        match &request {
            Request::Hello { proof: None } => return self.inner.handle(id, request, peer, sink).await,
            Request::Join { secret } => return Ok((self.admission.join(secret, peer).await?, Bytes::new())),
            Request::Introduce { membership } => {
                return Ok((self.admission.introduce(peer, membership).await?, Bytes::new()));
            }
            _ => {}
        }
        let guest = match self.admission.guest(peer) {
            Some(guest) => guest,
            None => self.admission.admit(peer).await?,
        };
        let known = match &request {
            Request::Publish { .. } | Request::Pin { .. } | Request::Unpin { .. }
                if guest.rights == Rights::ReadOnly =>
            {
                let message = "this peer was invited to download only; it does not publish";
                return Err(ErrorReply::new(ErrorCode::Forbidden, message));
            }
            Request::Renew { known, .. } => *known,
            _ => None,
        };
        let (mut reply, payload) = guest.attend(&*self.inner, id, request, peer, sink).await?;
        match &mut reply {
            Reply::Done => {
                if let Some(known) = known {
                    reply = self.admission.news(&guest.peer, known).await?;
                }
            }
            Reply::Hello { welcome: Some(welcome), .. } => {
                welcome.membership = Some(self.admission.membership(&guest.peer).await?);
            }
            _ => {}
        }
        Ok((reply, payload))
    }
}
