//! Shows this node's membership to those that it asks, and asks only members: a wrapper around any transport whose
//! connections are authenticated.
//!
//! The introduction goes in front of the first request on a connection, without waiting in between. A remote that does not
//! know the connection any more (it was dialled anew, or the remote has forgotten it) says `unauthorized`; then it is done
//! again. What a remote says before it has shown a membership is thrown away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join;

use super::members::Members;
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;
use crate::protocol::codec;
use crate::protocol::error::ErrorCode;
use crate::protocol::introduction;
use crate::protocol::message::{Reply, Request};
use crate::swarm::membership::{SKEW_MS, SignedMembership};
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::{Connection, Deadline, Listener, Message, Transport};

/// How long a call waits for this node's own membership, which a node that just started has in a moment.
const OWN: Duration = Duration::from_secs(10);

/// A transport of a closed swarm.
#[derive(Debug)]
pub struct MemberTransport {
    inner: Arc<dyn Transport>,
    members: Arc<Members>,
}

impl MemberTransport {
    /// Asks members only, over this transport.
    pub fn new(inner: Arc<dyn Transport>, members: Arc<Members>) -> Self {
        Self { inner, members }
    }
}

#[async_trait]
impl Transport for MemberTransport {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn identity(&self) -> Option<PeerId> {
        self.inner.identity()
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        let Some(remote) = endpoint.id() else {
            let problem = "in a swarm by invitation an endpoint has the id of its peer".to_owned();
            return Err(TransportError::InvalidEndpoint { endpoint: endpoint.clone(), problem });
        };
        let inner = self.inner.connect(endpoint).await?;
        self.members.note_made(remote, &inner);
        Ok(Arc::new(MemberConnection {
            inner,
            members: Arc::clone(&self.members),
            remote,
            until: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.inner.bind(endpoint).await
    }
}

#[derive(Debug)]
struct MemberConnection {
    inner: Arc<dyn Connection>,
    members: Arc<Members>,
    /// Who is at the other end: the transport sees to it.
    remote: PeerId,
    /// Until when the membership holds that the remote has shown; 0 before it has.
    until: AtomicU64,
    /// The list of revocations that it was looked up in.
    generation: AtomicU64,
}

impl MemberConnection {
    /// Whether both have introduced themselves, as far as this side knows.
    async fn is_introduced(&self) -> Result<bool, TransportError> {
        let generation = self.members.generation();
        if generation != self.generation.load(Ordering::Relaxed) {
            if self.members.is_revoked(&self.remote) {
                self.inner.close().await;
                return Err(self.not_admitted("it was thrown out of the swarm"));
            }
            self.generation.store(generation, Ordering::Relaxed);
        }
        Ok(self.members.now() < self.until.load(Ordering::Relaxed))
    }

    fn not_admitted(&self, problem: impl ToString) -> TransportError {
        TransportError::NotAdmitted { endpoint: self.endpoint().clone(), problem: problem.to_string() }
    }

    async fn introduce(&self, own: SignedMembership, deadline: Deadline) -> Result<(), TransportError> {
        let id = self.inner.next_id();
        let header = codec::encode_request(id, &Request::Introduce { membership: own });
        let reply = self.inner.call(id, header, deadline).await?;
        let shown = match codec::decode_reply(&reply.header) {
            Some(Ok(Reply::Introduced { membership: Some(shown) })) => shown,
            Some(Ok(Reply::Introduced { membership: None })) => {
                return Err(self.not_admitted("it has no membership itself at the moment"));
            }
            Some(Err(error)) if error.code == ErrorCode::Unauthorized => {
                return Err(self.not_admitted(format!("it does not let this peer in: {}", error.message)));
            }
            Some(Err(error)) => return Err(self.not_admitted(error)),
            _ => return Err(self.not_admitted("it does not introduce itself")),
        };
        let membership = self
            .members
            .check(&shown, self.remote)
            .map_err(|error| self.not_admitted(format!("its membership is not accepted: {error}")))?;
        self.until.store(membership.until.saturating_add(SKEW_MS), Ordering::Relaxed);
        Ok(())
    }

    async fn own(&self, deadline: Deadline) -> Result<SignedMembership, TransportError> {
        let (Deadline::Total(limit) | Deadline::Silence(limit)) = deadline;
        let own = match self.members.own() {
            Some(own) => Some(own),
            None => self.members.own_within(limit.min(OWN)).await,
        };
        own.ok_or_else(|| {
            self.not_admitted("this peer has no valid membership of the swarm; no tracker gave it one")
        })
    }

    /// A call to somebody who knows this node already, or did a moment ago.
    async fn call_again(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        let reply = self.inner.call(id, header, deadline).await;
        if let Err(TransportError::Lost { .. } | TransportError::Unreachable { .. }) = &reply {
            self.until.store(0, Ordering::Relaxed);
        }
        reply
    }
}

#[async_trait]
impl Connection for MemberConnection {
    fn next_id(&self) -> RequestId {
        self.inner.next_id()
    }

    async fn call(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        if self.is_introduced().await? {
            let reply = self.call_again(id, header.clone(), deadline).await?;
            if !introduction::is_unauthorized(&reply.header) {
                return Ok(reply);
            }
            self.introduce(self.own(deadline).await?, deadline).await?;
            return self.call_again(id, header, deadline).await;
        }
        let own = self.own(deadline).await?;
        // Polled in this order, so the introduction is in front.
        let first = self.call_again(id, header.clone(), deadline);
        let (introduced, reply) = join(self.introduce(own, deadline), first).await;
        introduced?;
        match reply? {
            // The connection was lost between the two.
            refused if introduction::is_unauthorized(&refused.header) => {
                self.call_again(id, header, deadline).await
            }
            reply => Ok(reply),
        }
    }

    fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
