//! The plug-in traits for transports: requests and replies between two nodes.
//!
//! A request is a header; a reply is a header and an optional large payload that no serializer ever copies.
//! Replies are matched to requests by the id in the envelope of the header ([`envelope`]); the rest of the header
//! is the business of [`crate::protocol`]. The obligations below are checked by the `conformance` kit (feature
//! `testkit`).

pub mod budget;
pub mod caller;
pub mod calls;
#[cfg(any(test, feature = "testkit"))]
pub mod conformance;
pub mod dialer;
pub mod envelope;
pub mod error;
#[cfg(any(test, feature = "testkit"))]
pub mod fault;
pub mod memory;

use std::fmt::Debug;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::machine;
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;
use envelope::RequestId;
use error::TransportError;

/// A header and, in replies, an optional payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// A CBOR map with the request id in it, see [`envelope`].
    pub header: Bytes,
    /// Raw bytes; empty where there are none.
    pub payload: Bytes,
}

/// What a remote may send before it is cut off. Going past a limit is an error or a closed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// The largest header in bytes.
    pub header: usize,
    /// The largest payload in bytes.
    pub payload: usize,
    /// Requests in flight per connection.
    pub in_flight: usize,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self { header: 64 * 1024, payload: crate::model::layout::MAX_PIECE_SIZE as usize, in_flight: 64 }
    }
}

impl MessageLimits {
    /// Refuses a header of more bytes than allowed.
    pub const fn check_header(&self, bytes: usize) -> Result<(), TransportError> {
        if bytes > self.header {
            return Err(TransportError::TooLarge { what: "header", limit: self.header, actual: bytes });
        }
        Ok(())
    }

    /// The reply where it is within the limits, else what is sent in its place and the error for its sender.
    pub fn fit(&self, reply: Message) -> (Message, Result<(), TransportError>) {
        match self.check(&reply) {
            Ok(()) => (reply, Ok(())),
            Err(error) => {
                let header = envelope::too_large_reply(&reply.header);
                (Message { header, payload: Bytes::new() }, Err(error))
            }
        }
    }

    /// Refuses a message whose header or payload is larger than allowed.
    pub const fn check(&self, message: &Message) -> Result<(), TransportError> {
        let actual = message.payload.len();
        if actual > self.payload {
            return Err(TransportError::TooLarge { what: "payload", limit: self.payload, actual });
        }
        self.check_header(message.header.len())
    }
}

/// How long a call waits for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// This long, whatever happens.
    Total(Duration),
    /// Until the connection has been silent for this long: not a byte of any reply has come.
    Silence(Duration),
}

/// Names one accepted connection for as long as the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl ConnectionId {
    /// The id of one more connection, unlike any before it in this process.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(machine::count(&NEXT))
    }
}

/// What counts as one address where something is shared among addresses: an IPv6 customer usually commands a whole /64
/// network.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// An accepted connection, for those above the transport who want to end it, or to know whether it has ended. Clones are the
/// same; the default is a connection that nobody is at the other end of.
#[derive(Debug, Clone, Default)]
pub struct ConnectionHandle(Arc<CancellationToken>);

impl ConnectionHandle {
    /// For a transport: of a connection that ends when the token is cancelled, and cancels it when it ends.
    pub fn new(end: CancellationToken) -> Self {
        Self(Arc::new(end))
    }

    /// Ends the connection at once: what is being sent over it is cut off, no reply leaves any more, and to the asker its calls
    /// are [`TransportError::Lost`]. Who is at the other end may dial again.
    pub fn close(&self) {
        self.0.cancel();
    }

    /// Whether it has ended, be it because the remote closed it.
    pub fn is_closed(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns when it has ended.
    pub async fn closed(&self) {
        self.0.cancelled().await;
    }
}

/// What is known of the other side of an accepted connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The connection that a request came over.
    pub connection: ConnectionId,
    /// The same, to end it.
    pub handle: ConnectionHandle,
    /// The remote address; none in process.
    pub address: Option<IpAddr>,
    /// The remote's identity where the stream is authenticated.
    pub identity: Option<PeerId>,
}

/// Dials and listens for the endpoints of one scheme.
#[async_trait]
pub trait Transport: Debug + Send + Sync + 'static {
    /// The scheme of the endpoints that this transport serves: `zmq`.
    fn scheme(&self) -> &'static str;

    /// Who this node is to those at the other end, where both sides of a connection prove that. Then an endpoint to dial
    /// carries the id of who must answer, nobody else is talked to, and [`PeerInfo::identity`] is set.
    fn identity(&self) -> Option<PeerId> {
        None
    }

    /// A connection to the endpoint. Returns at once: the dialling is done when it is first used, and again
    /// whenever the connection is lost, with growing, jittered pauses.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError>;

    /// Listens at the endpoint; port 0 lets the system choose.
    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError>;
}

/// Refuses an endpoint that a transport cannot listen at.
pub fn check_bind(transport: &dyn Transport, endpoint: &Endpoint) -> Result<(), TransportError> {
    check_scheme(transport, endpoint)?;
    if endpoint.id().is_none() || endpoint.id() == transport.identity() {
        return Ok(());
    }
    Err(invalid(endpoint, "a node listens under its own id; leave the id out".to_owned()))
}

fn check_scheme(transport: &dyn Transport, endpoint: &Endpoint) -> Result<(), TransportError> {
    let scheme = transport.scheme();
    if endpoint.scheme() == scheme {
        return Ok(());
    }
    Err(invalid(endpoint, format!("this transport serves {scheme}:// only")))
}

/// Refuses an endpoint that a transport cannot dial.
pub fn check_dial(transport: &dyn Transport, endpoint: &Endpoint) -> Result<(), TransportError> {
    check_scheme(transport, endpoint)?;
    let scheme = transport.scheme();
    match (transport.identity().is_some(), endpoint.id()) {
        (true, None) => {
            let problem = format!("who must answer there is missing; write {scheme}://ID@HOST:PORT");
            return Err(invalid(endpoint, problem));
        }
        (false, Some(_)) => {
            let problem = format!("over {scheme}:// nobody proves an id; leave it out, or use {scheme}s://");
            return Err(invalid(endpoint, problem));
        }
        _ => {}
    }
    if endpoint.port() == 0 {
        return Err(invalid(endpoint, "port 0 can be listened at, but not dialled".to_owned()));
    }
    if endpoint.is_unspecified() {
        let problem = "this address means all of a machine's own; dial one of them".to_owned();
        return Err(invalid(endpoint, problem));
    }
    Ok(())
}

fn invalid(endpoint: &Endpoint, problem: String) -> TransportError {
    TransportError::InvalidEndpoint { endpoint: endpoint.clone(), problem }
}

/// The asking side: many calls at once, each matched to its reply by the request id.
#[async_trait]
pub trait Connection: Debug + Send + Sync + 'static {
    /// An id that no other call on this connection has. It belongs into the header of the next request.
    fn next_id(&self) -> RequestId;

    /// Sends a request, whose envelope holds `id`, and returns the reply with the same id.
    ///
    /// While the remote cannot be reached it fails with [`TransportError::Unreachable`] as soon as that is
    /// known, and at once during the pause before the next dialling. A connection that is lost fails all calls
    /// under way with [`TransportError::Lost`] at once. A slow call holds up no other. Dropping the future forgets the call; a late
    /// reply is dropped and counted. At most [`MessageLimits::in_flight`] calls are on the way; further ones wait
    /// within their deadline.
    async fn call(&self, id: RequestId, header: Bytes, deadline: Deadline)
    -> Result<Message, TransportError>;

    /// Where this connection leads.
    fn endpoint(&self) -> &Endpoint;

    /// Closes the connection; calls under way and later ones return [`TransportError::Closed`]. Dropping the last
    /// handle does the same.
    async fn close(&self);
}

/// The answering side.
#[async_trait]
pub trait Listener: Debug + Send + Sync + 'static {
    /// The next request of any connection, in the order of arrival per connection. Returns
    /// [`TransportError::Closed`] after [`Listener::shutdown`], and no other error: what a remote does wrong
    /// costs that remote its connection and nothing else.
    async fn accept(&self) -> Result<Incoming, TransportError>;

    /// The endpoint with the port that was chosen and, where the transport authenticates, the id of this node: what others
    /// dial.
    fn local_endpoint(&self) -> &Endpoint;

    /// Stops accepting and closes the connections once the replies given so far are sent, or `grace` is over.
    async fn shutdown(&self, grace: Duration);
}

/// A request and the way to answer it.
#[derive(Debug)]
pub struct Incoming {
    /// The header as it came; not yet decoded. Requests carry no payload: one that does never gets here, it is
    /// answered as malformed by the transport's [`envelope::malformed_reply`].
    pub header: Bytes,
    /// Who asks.
    pub peer: PeerInfo,
    /// The way back. Dropped without a reply, the request no longer counts as in flight, and the remote waits in
    /// vain: services answer every request.
    pub reply: Box<dyn ReplySink>,
}

/// Takes the one reply to a request.
#[async_trait]
pub trait ReplySink: Debug + Send + Sync + 'static {
    /// Waits until a reply of `bytes` fits the budget of queued reply bytes of the connection and of the process,
    /// and takes it from there until the bytes have left the process. To be called before the payload is read.
    /// What is added to a reservation that is there already is taken without waiting.
    /// [`TransportError::Closed`] when the connection is gone.
    async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError>;

    /// Queues the reply; returns before it has left. What was not reserved is reserved now. An error means that
    /// the connection is gone or the reply goes beyond the limits; then the asker gets
    /// [`envelope::too_large_reply`] in its place.
    async fn send(self: Box<Self>, message: Message) -> Result<(), TransportError>;
}
