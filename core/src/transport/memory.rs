//! The in-memory transport: the reference implementation, and the network of simulated swarms.
//!
//! Nodes that share a [`MemoryNetwork`] reach each other at `memory://NAME:PORT`. The transport has the limits, the reply
//! budget and the failures of a real one. It connects immediately, so there is no delay between attempts. It does not use
//! the wall clock, and so works with tokio's paused clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::budget::{ConnectionBudget, ReplyBudget, ReplyReservation};
use super::caller::{Caller, Exchange};
use super::calls::{Activity, Calls};
use super::endpoint_checks::{check_bind, check_connect};
use super::envelope::{EncodedRequest, RequestId};
use super::error::TransportError;
use super::interface::{Connection, Incoming, Listener, ReplySink, Transport};
use super::message::{Message, MessageLimits};
use super::peer_info::{ConnectionHandle, ConnectionId, PeerInfo};
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;

const SCHEME: &str = "memory";
/// The first port to assign for port 0.
const FIRST_PORT: u16 = 49_152;
/// The reply budgets per connection and per listener, the same as on a real network.
const CONNECTION_BUDGET: usize = 8 * 1024 * 1024;
const LISTENER_BUDGET: usize = 32 * 1024 * 1024;

type Address = (String, u16);

/// A network within the process. Clones share one network.
#[derive(Debug, Clone, Default)]
pub struct MemoryNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    limits: MessageLimits,
    listeners: Mutex<HashMap<Address, Arc<Server>>>,
}

impl MemoryNetwork {
    /// Creates an empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty network with other message limits.
    pub fn with_limits(limits: MessageLimits) -> Self {
        Self { shared: Arc::new(Shared { limits, ..Shared::default() }) }
    }

    /// Returns a transport for this network that does not authenticate.
    pub fn transport(&self) -> Arc<dyn Transport> {
        self.transport_at(None, None)
    }

    /// Returns an authenticating transport for a node with this id. Its listeners accept only connections to this id, and
    /// its connections present it.
    pub fn transport_of(&self, identity: PeerId) -> Arc<dyn Transport> {
        self.transport_at(None, Some(identity))
    }

    /// Returns a transport for a node with this id, if any. Listeners see its connections come from the address.
    pub fn transport_at(&self, address: Option<IpAddr>, identity: Option<PeerId>) -> Arc<dyn Transport> {
        Arc::new(MemoryTransport { network: self.clone(), address, identity })
    }
}

#[derive(Debug)]
struct MemoryTransport {
    network: MemoryNetwork,
    address: Option<IpAddr>,
    identity: Option<PeerId>,
}

#[async_trait]
impl Transport for MemoryTransport {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn identity(&self) -> Option<PeerId> {
        self.identity
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        check_connect(self, endpoint)?;
        Ok(Arc::new(MemoryConnection {
            shared: Arc::clone(&self.network.shared),
            address: self.address,
            identity: self.identity,
            caller: Caller::new(endpoint.clone(), self.network.shared.limits),
            link: Mutex::new(None),
        }))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        check_bind(self, endpoint)?;
        let in_use = || TransportError::Bind {
            endpoint: endpoint.clone(),
            source: std::io::Error::from(std::io::ErrorKind::AddrInUse).into(),
        };
        let mut listeners = self.network.shared.listeners.lock();
        let address = |port| (endpoint.host().to_owned(), port);
        let port = match endpoint.port() {
            0 => (FIRST_PORT..=u16::MAX).find(|port| !listeners.contains_key(&address(*port))),
            port => Some(port).filter(|port| !listeners.contains_key(&address(*port))),
        };
        let port = port.ok_or_else(in_use)?;
        // Bounded by the outstanding requests of each connection.
        let (sender, receiver) = mpsc::unbounded_channel();
        let server = Arc::new(Server {
            identity: self.identity,
            requests: sender,
            budget: ReplyBudget::new(LISTENER_BUDGET, CONNECTION_BUDGET),
            links: Mutex::default(),
            closed: CancellationToken::new(),
        });
        listeners.insert(address(port), Arc::clone(&server));
        Ok(Arc::new(MemoryListener {
            shared: Arc::clone(&self.network.shared),
            endpoint: endpoint.with_port(port).with_id(self.identity),
            server,
            requests: tokio::sync::Mutex::new(receiver),
        }))
    }
}

/// The part of a listener that connections share.
#[derive(Debug)]
struct Server {
    identity: Option<PeerId>,
    requests: mpsc::UnboundedSender<Incoming>,
    budget: Arc<ReplyBudget>,
    links: Mutex<Vec<Weak<Link>>>,
    closed: CancellationToken,
}

impl Server {
    fn close(&self) {
        self.closed.cancel();
        for link in std::mem::take(&mut *self.links.lock()).iter().filter_map(Weak::upgrade) {
            // First, so that no call begins on an ended link.
            link.calls.fail(|| TransportError::Lost { endpoint: link.endpoint.clone() });
            link.closed.cancel();
        }
    }

    fn accept(self: &Arc<Self>, client: &MemoryConnection) -> Arc<Link> {
        let MemoryConnection { shared, address, identity, caller, .. } = client;
        let (endpoint, activity) = (caller.endpoint(), caller.activity());
        let closed = caller.closed().child_token();
        let (connection, handle) = (ConnectionId::next(), ConnectionHandle::new(closed.clone()));
        let link = Arc::new(Link {
            endpoint: endpoint.clone(),
            limits: shared.limits,
            server: Arc::clone(self),
            peer: PeerInfo { connection, handle, address: *address, identity: *identity },
            calls: Calls::new(),
            activity: activity.clone(),
            budget: self.budget.connection(*address),
            in_flight: Arc::new(Semaphore::new(shared.limits.in_flight)),
            closed,
        });
        let mut links = self.links.lock();
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(&link));
        link
    }
}

/// An established connection. Both sides hold it, and either side can close it.
#[derive(Debug)]
struct Link {
    endpoint: Endpoint,
    limits: MessageLimits,
    server: Arc<Server>,
    peer: PeerInfo,
    calls: Arc<Calls>,
    activity: Activity,
    budget: Arc<ConnectionBudget>,
    in_flight: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Link {
    fn deliver(&self, reply: Message) {
        self.activity.record();
        self.calls.deliver(reply);
    }

    /// Passes a request to the listener.
    fn request(self: &Arc<Self>, header: Bytes, slot: OwnedSemaphorePermit) {
        let request = match EncodedRequest::parse(header) {
            Ok(request) => request,
            Err(header) => return self.deliver(Message { header, payload: Bytes::new() }),
        };
        let reply =
            MemoryReply { link: Arc::clone(self), _slot: slot, reserved: ReplyReservation::default() };
        let incoming = Incoming { request, peer: self.peer.clone(), reply: Box::new(reply) };
        // A closed listener has already failed the call.
        let _ = self.server.requests.send(incoming);
    }
}

#[derive(Debug)]
struct MemoryReply {
    link: Arc<Link>,
    _slot: OwnedSemaphorePermit,
    reserved: ReplyReservation,
}

#[async_trait]
impl ReplySink for MemoryReply {
    async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError> {
        self.reserved.reserve(&self.link.budget, &self.link.closed, bytes).await
    }

    async fn send(self: Box<Self>, message: Message) -> Result<(), TransportError> {
        let Self { link, _slot, reserved } = *self;
        let (message, fits) = link.limits.fit(message);
        let reserved = reserved.complete(&link.budget, &link.closed, &message).await?;
        // Released before delivery, so that an immediate next request finds a free slot.
        drop((_slot, reserved));
        if link.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        link.deliver(message);
        fits
    }
}

#[derive(Debug)]
struct MemoryListener {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    server: Arc<Server>,
    requests: tokio::sync::Mutex<mpsc::UnboundedReceiver<Incoming>>,
}

impl MemoryListener {
    fn close(&self) {
        let address = (self.endpoint.host().to_owned(), self.endpoint.port());
        let mut listeners = self.shared.listeners.lock();
        // Another listener may use the address by now.
        if listeners.get(&address).is_some_and(|listener| Arc::ptr_eq(listener, &self.server)) {
            listeners.remove(&address);
        }
        drop(listeners);
        self.server.close();
    }
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&self) -> Result<Incoming, TransportError> {
        let next = async { self.requests.lock().await.recv().await };
        tokio::select! {
            biased;
            () = self.server.closed.cancelled() => Err(TransportError::Closed),
            incoming = next => incoming.ok_or(TransportError::Closed),
        }
    }

    fn local_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn shutdown(&self, _grace: Duration) {
        // Replies are delivered immediately, so no reply is queued.
        self.close();
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug)]
struct MemoryConnection {
    shared: Arc<Shared>,
    address: Option<IpAddr>,
    identity: Option<PeerId>,
    caller: Caller,
    link: Mutex<Option<Arc<Link>>>,
}

impl MemoryConnection {
    fn link(&self) -> Result<Arc<Link>, TransportError> {
        // The link of a closed connection would be closed, and `exchange` would try again.
        if self.caller.closed().is_cancelled() {
            return Err(TransportError::Closed);
        }
        let mut current = self.link.lock();
        if let Some(link) = current.as_ref().filter(|link| !link.closed.is_cancelled()) {
            return Ok(Arc::clone(link));
        }
        let endpoint = self.caller.endpoint();
        let listeners = self.shared.listeners.lock();
        let address = (endpoint.host().to_owned(), endpoint.port());
        // A listener with another identity is unreachable.
        let Some(server) = listeners.get(&address).filter(|server| server.identity == endpoint.id()) else {
            return Err(TransportError::Unreachable {
                endpoint: endpoint.clone(),
                source: std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into(),
            });
        };
        let link = server.accept(self);
        *current = Some(Arc::clone(&link));
        Ok(link)
    }
}

impl Exchange for MemoryConnection {
    fn caller(&self) -> &Caller {
        &self.caller
    }

    async fn exchange(&self, id: RequestId, header: Bytes) -> Result<Message, TransportError> {
        loop {
            let link = self.link()?;
            let slot = tokio::select! {
                biased;
                // Lost before the request was sent: reconnect.
                () = link.closed.cancelled() => continue,
                slot = Arc::clone(&link.in_flight).acquire_owned() => slot,
            };
            let (Ok(slot), Some(call)) = (slot, link.calls.begin(id)) else { continue };
            link.request(header, slot);
            return tokio::select! {
                biased;
                reply = self.caller.reply(call) => reply,
                () = link.closed.cancelled() => {
                    Err(TransportError::Lost { endpoint: self.caller.endpoint().clone() })
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Deadline, envelope};

    #[tokio::test(start_paused = true)]
    async fn deadline_uses_the_paused_clock() {
        let network = MemoryNetwork::new();
        let listener = network.transport().bind(&"memory://node:0".parse().unwrap()).await.unwrap();
        let connection = network.transport().connect(listener.local_endpoint()).await.unwrap();
        let header = envelope::encode_request(RequestId(1), &"status");
        let begin = tokio::time::Instant::now();
        let day = Duration::from_secs(86_400);
        let call = connection.call(RequestId(1), header, Deadline::Total(day)).await;
        assert!(matches!(call, Err(TransportError::Deadline { .. })));
        assert_eq!(begin.elapsed(), day);
    }

    #[tokio::test]
    async fn identities_of_both_sides_are_verified() {
        let network = MemoryNetwork::new();
        let [server, client] = [1, 2].map(|byte| PeerId::from_bytes([byte; 32]));
        let listener = network.transport_of(server).bind(&"memory://node:0".parse().unwrap()).await.unwrap();
        let connect = async |id| {
            let endpoint = listener.local_endpoint().with_id(id);
            network.transport_of(client).connect(&endpoint).await
        };
        assert!(matches!(connect(None).await, Err(TransportError::InvalidEndpoint { .. })));
        let header = envelope::encode_request(RequestId(1), &"status");
        let day = Deadline::Total(Duration::from_secs(86_400));
        let wrong = connect(Some(client)).await.unwrap().call(RequestId(1), header.clone(), day).await;
        assert!(matches!(wrong, Err(TransportError::Unreachable { .. })), "{wrong:?}");
        let right = connect(Some(server)).await.unwrap();
        let (_, incoming) = tokio::join!(
            right.call(RequestId(1), header, Deadline::Total(Duration::from_millis(1))),
            listener.accept()
        );
        assert_eq!(incoming.unwrap().peer.identity, Some(client));
    }

    #[tokio::test]
    async fn separate_networks_are_isolated() {
        let (one, other) = (MemoryNetwork::new(), MemoryNetwork::new());
        let listener = one.transport().bind(&"memory://node:7".parse().unwrap()).await.unwrap();
        let connection = other.transport().connect(listener.local_endpoint()).await.unwrap();
        let header = envelope::encode_request(RequestId(1), &"status");
        let call = connection.call(RequestId(1), header, Deadline::Total(Duration::from_secs(1))).await;
        assert!(matches!(call, Err(TransportError::Unreachable { .. })));
    }
}
