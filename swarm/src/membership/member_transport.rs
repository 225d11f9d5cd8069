//! A transport of an invite-only swarm: a wrapper around any transport that authenticates. It presents this node's
//! membership on each outgoing connection and requires one of the remote.
//!
//! The `authorize` request precedes the first request on a connection; both are sent at once. A remote that does not know the
//! connection, because it was reopened or the remote restarted, replies `unauthorized`; then the connection is authorized
//! again. Replies that arrive before a valid membership of the remote are discarded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join;

use super::members::Members;
use enjambre_core::model::membership::{SKEW, SignedMembership};
use enjambre_core::protocol::authorization;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::{
    Connection, Deadline, Endpoint, Listener, Message, PeerId, RequestId, Transport, TransportError,
};

/// The longest wait of a call for this node's own membership, which arrives soon after a start.
const OWN_TIMEOUT: Duration = Duration::from_secs(10);

/// A transport that only calls members.
#[derive(Debug)]
pub struct MemberTransport {
    inner: Arc<dyn Transport>,
    members: Arc<Members>,
}

impl MemberTransport {
    /// Wraps a transport.
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

    async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
        self.inner.resolve(endpoint).await
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        let Some(remote) = endpoint.id() else {
            let problem = "an endpoint in an invite-only swarm must contain a peer id".to_owned();
            return Err(TransportError::InvalidEndpoint { endpoint: endpoint.clone(), problem });
        };
        let inner = self.inner.connect(endpoint).await?;
        self.members.add_outgoing(remote, &inner);
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
    /// The remote, which the transport authenticates.
    remote: PeerId,
    /// The end of the remote's membership. 0 before it presented one.
    until: AtomicU64,
    /// The generation of the revocation list in which the remote was last looked up.
    generation: AtomicU64,
}

impl MemberConnection {
    /// Returns whether both sides presented valid memberships, as far as this side knows.
    async fn is_authorized(&self) -> Result<bool, TransportError> {
        let generation = self.members.generation();
        if generation != self.generation.load(Ordering::Relaxed) {
            if self.members.is_revoked(&self.remote) {
                self.inner.close().await;
                return Err(self.not_admitted("the remote peer was revoked"));
            }
            self.generation.store(generation, Ordering::Relaxed);
        }
        Ok(self.members.now().get() < self.until.load(Ordering::Relaxed))
    }

    fn not_admitted(&self, problem: impl ToString) -> TransportError {
        TransportError::NotAdmitted { endpoint: self.endpoint().clone(), problem: problem.to_string() }
    }

    async fn authorize(&self, own: SignedMembership, deadline: Deadline) -> Result<(), TransportError> {
        let id = self.inner.next_id();
        let header = codec::encode_request(id, &Request::Authorize { membership: own });
        let reply = self.inner.call(id, header, deadline).await?;
        let signed = match codec::decode_reply(&reply.header) {
            Some(Ok(Reply::Authorized { membership: Some(signed) })) => signed,
            Some(Ok(Reply::Authorized { membership: None })) => {
                return Err(self.not_admitted("the remote has no valid membership"));
            }
            Some(Err(error)) if error.code == ErrorCode::Unauthorized => {
                return Err(self.not_admitted(format!("the remote refused this peer: {}", error.message)));
            }
            Some(Err(error)) => return Err(self.not_admitted(error)),
            _ => return Err(self.not_admitted("the remote did not present a membership")),
        };
        let membership = self.members.verify(&signed, self.remote).map_err(|error| {
            self.not_admitted(format!("the membership of the remote is not valid: {error}"))
        })?;
        self.until.store((membership.until + SKEW).get(), Ordering::Relaxed);
        Ok(())
    }

    async fn own_membership(&self, deadline: Deadline) -> Result<SignedMembership, TransportError> {
        let (Deadline::Total(limit) | Deadline::Silence(limit)) = deadline;
        self.members.wait_own(limit.min(OWN_TIMEOUT)).await.ok_or_else(|| {
            self.not_admitted(
                "this peer has no valid membership; check that it can reach a tracker of the swarm",
            )
        })
    }

    /// Sends a request, and records that a lost connection has to be authorized again.
    async fn send(
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
        if self.is_authorized().await? {
            let reply = self.send(id, header.clone(), deadline).await?;
            if !authorization::is_unauthorized(&reply.header) {
                return Ok(reply);
            }
            self.authorize(self.own_membership(deadline).await?, deadline).await?;
            return self.send(id, header, deadline).await;
        }
        let own = self.own_membership(deadline).await?;
        // `join` polls in this order, so `authorize` is sent first.
        let first = self.send(id, header.clone(), deadline);
        let (authorized, reply) = join(self.authorize(own, deadline), first).await;
        authorized?;
        match reply? {
            // The connection was lost between the two requests.
            refused if authorization::is_unauthorized(&refused.header) => {
                self.send(id, header, deadline).await
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
