//! Keeps out who asks a peer without being a member: a wrapper around whatever answers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::members::Members;
use crate::protocol::codec;
use crate::protocol::error::ErrorReply;
use crate::protocol::introduction;
use crate::protocol::message::{Reply, Request};
use crate::protocol::server::Handler;
use crate::transport::envelope::RequestId;
use crate::transport::{PeerInfo, ReplySink};

/// Answers members, and nobody else.
#[expect(missing_debug_implementations, reason = "a handler is behind it")]
pub struct Door {
    inner: Arc<dyn Handler>,
    members: Arc<Members>,
}

impl Door {
    /// In front of what answers members.
    pub fn new(inner: Arc<dyn Handler>, members: Arc<Members>) -> Self {
        Self { inner, members }
    }
}

#[async_trait]
impl Handler for Door {
    /// Introductions are answered at once, and so before the request behind: nobody has to wait for the answer to one
    /// before it asks for something.
    fn answer_at_once(&self, header: &[u8], peer: &PeerInfo) -> Option<Bytes> {
        if let Some((id, membership)) = introduction::read(header) {
            let answer = self.members.introduce(peer, &membership).map_err(ErrorReply::from);
            let answer = answer.map(|membership| Reply::Introduced { membership });
            return Some(codec::encode_reply(Some(id), answer.as_ref()));
        }
        self.members.guest(peer).ok()?;
        self.inner.answer_at_once(header, peer)
    }

    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        if let Request::Introduce { membership } = request {
            let membership = self.members.introduce(peer, &membership)?;
            return Ok((Reply::Introduced { membership }, Bytes::new()));
        }
        self.members.guest(peer)?.attend(&*self.inner, id, request, peer, sink).await
    }
}
