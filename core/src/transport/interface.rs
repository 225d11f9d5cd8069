//! The traits that a transport implements.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::envelope::{EncodedRequest, RequestId};
use super::error::TransportError;
use super::message::Message;
use super::metrics::TransportMetrics;
use super::peer_info::PeerInfo;
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;

/// The maximum time that a call waits for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// The total time of the call.
    Total(Duration),
    /// The time without any received byte on the connection.
    Silence(Duration),
}

/// Connects to and listens at the endpoints of one scheme.
///
/// An implementation is checked by the conformance test suite of the crate `enjambre-testkit`. A wrapper around another
/// transport, for example for metrics or fault injection, implements the same trait:
///
/// ```
/// use std::sync::Arc;
///
/// use async_trait::async_trait;
/// use enjambre_core::model::endpoint::Endpoint;
/// use enjambre_core::model::id::PeerId;
/// use enjambre_core::transport::error::TransportError;
/// use enjambre_core::transport::memory::MemoryNetwork;
/// use enjambre_core::transport::{Connection, Listener, Transport};
///
/// /// Logs each new connection.
/// #[derive(Debug)]
/// struct Logged(Arc<dyn Transport>);
///
/// #[async_trait]
/// impl Transport for Logged {
///     fn scheme(&self) -> &'static str {
///         self.0.scheme()
///     }
///
///     fn identity(&self) -> Option<PeerId> {
///         self.0.identity()
///     }
///
///     async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
///         self.0.resolve(endpoint).await
///     }
///
///     async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
///         tracing::info!(%endpoint, "connecting");
///         self.0.connect(endpoint).await
///     }
///
///     async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
///         self.0.bind(endpoint).await
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let transport = Logged(MemoryNetwork::new().transport());
/// let listener = transport.bind(&"memory://node:0".parse()?).await?;
/// let connection = transport.connect(listener.local_endpoint()).await?;
/// assert_eq!(connection.endpoint(), listener.local_endpoint());
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Transport: Debug + Send + Sync + 'static {
    /// Returns the scheme of the endpoints that this transport serves, for example `zmq`.
    fn scheme(&self) -> &'static str;

    /// Returns the id of this node if the transport authenticates both sides of a connection. The endpoint of a remote then
    /// contains the id that the remote must prove, and [`PeerInfo::identity`] is set.
    fn identity(&self) -> Option<PeerId> {
        None
    }

    /// Returns the endpoint once for each address of its host, so that the addresses can be checked before a connection. A
    /// transport whose hosts have no addresses returns the endpoint itself, as the default implementation does.
    async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
        Ok(vec![endpoint.clone()])
    }

    /// Returns a connection to the endpoint, without waiting for the remote. The transport connects at the first call and
    /// reconnects whenever the connection is lost, with increasing, jittered delays.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError>;

    /// Listens at the endpoint. Port 0 lets the system choose a port.
    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError>;

    /// Returns the metrics of the transport, or `None` if it does not count, as the default implementation does.
    fn metrics(&self) -> Option<&TransportMetrics> {
        None
    }
}

/// The requesting side of a connection, with any number of concurrent calls.
#[async_trait]
pub trait Connection: Debug + Send + Sync + 'static {
    /// Returns a request id that no other call on this connection has. The header of the next request contains it.
    fn next_id(&self) -> RequestId;

    /// Sends a request whose header contains `id`, and returns the reply with the same id.
    ///
    /// If the remote is not reachable, the call fails with [`TransportError::Unreachable`] as soon as this is known, and
    /// immediately during the delay before the next connection attempt. If the connection is lost, all outstanding calls
    /// fail immediately with [`TransportError::Lost`]. A slow call does not delay other calls. Dropping the future abandons
    /// the call; a late reply is dropped and counted. At most
    /// [`MessageLimits::in_flight`](super::message::MessageLimits::in_flight) requests are outstanding; further calls wait
    /// within their deadline.
    async fn call(&self, id: RequestId, header: Bytes, deadline: Deadline)
    -> Result<Message, TransportError>;

    /// Returns the endpoint of the remote.
    fn endpoint(&self) -> &Endpoint;

    /// Closes the connection. Outstanding and later calls return [`TransportError::Closed`]. Dropping the last handle has the
    /// same effect.
    async fn close(&self);
}

/// The answering side: receives the requests of all connections to an endpoint.
#[async_trait]
pub trait Listener: Debug + Send + Sync + 'static {
    /// Returns the next request. Requests of one connection keep their order. Returns [`TransportError::Closed`] after
    /// [`Listener::shutdown`], and no other error: a protocol violation closes only the connection of the violator.
    async fn accept(&self) -> Result<Incoming, TransportError>;

    /// Returns the endpoint that remotes connect to, with the chosen port and, if the transport authenticates, the id of
    /// this node.
    fn local_endpoint(&self) -> &Endpoint;

    /// Stops accepting. Closes the connections when the queued replies are sent, or after `grace`.
    async fn shutdown(&self, grace: Duration);
}

/// A request and the sink for its reply.
#[derive(Debug)]
pub struct Incoming {
    /// The request. Transports answer headers that [`EncodedRequest::parse`] rejects, and requests with a payload, by
    /// themselves.
    pub request: EncodedRequest,
    /// The sender.
    pub peer: PeerInfo,
    /// Accepts the reply. If the sink is dropped without a reply, the request no longer counts as outstanding, but the
    /// requester waits until its deadline: services answer every request.
    pub reply: Box<dyn ReplySink>,
}

/// Accepts the reply to a request.
#[async_trait]
pub trait ReplySink: Debug + Send + Sync + 'static {
    /// Waits until a reply of `bytes` fits into the budgets of queued reply bytes of the connection and the process, and
    /// reserves the bytes until they have left the process. Services call it before they read the payload. Increasing an
    /// existing reservation does not wait. Returns [`TransportError::Closed`] if the connection has ended.
    async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError>;

    /// Queues the reply, and returns before it is sent. Reserves the bytes that are not reserved yet. Returns an error if
    /// the connection has ended, or if the reply exceeds the limits; the requester then receives
    /// [`too_large_reply`](super::envelope::too_large_reply).
    async fn send(self: Box<Self>, message: Message) -> Result<(), TransportError>;
}
