//! The answering side of every transport over guarded streams: accepts, and ends in order.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::error::{Source, TransportError};
use enjambre_core::transport::{ConnectionHandle, ConnectionId, Incoming, Listener, PeerInfo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guard::Guard;
use crate::guard::admission::Ticket;
use crate::guard::cutoff::CutOff;
use crate::guard::secure::Security;
use crate::guard::socket;
use crate::guard::stream::Stream;
use crate::wire::{Parts, Wire};

/// How long accepting pauses when the system refuses another connection, for want of descriptors above all.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The part of a listener that its connections see.
pub(crate) struct Server<W> {
    pub(crate) guard: Arc<Guard>,
    pub(crate) wire: Arc<W>,
    security: Option<Security>,
    pub(crate) inbox: Inbox,
    /// No more connections and requests; replies that were given are still sent.
    pub(crate) stop: CancellationToken,
    /// Everything ends now.
    kill: CancellationToken,
}

/// A connection that was just accepted.
pub(crate) struct Accepted {
    pub(crate) stream: Stream,
    pub(crate) address: SocketAddr,
    /// When it must have greeted.
    pub(crate) until: Instant,
    /// To end it from above.
    pub(crate) handle: ConnectionHandle,
}

impl Accepted {
    /// What those above the transport know of it.
    pub(crate) fn info(&self, connection: ConnectionId) -> PeerInfo {
        PeerInfo {
            connection,
            handle: self.handle.clone(),
            address: Some(self.address.ip().to_canonical()),
            identity: self.stream.identity(),
        }
    }
}

/// Where requests go, and the tasks that a listener waits for when it shuts down.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    pub(crate) requests: mpsc::UnboundedSender<Incoming>,
    pub(crate) tasks: TaskTracker,
}

pub(crate) struct GuardedListener<W> {
    endpoint: Endpoint,
    server: Arc<Server<W>>,
    requests: tokio::sync::Mutex<mpsc::UnboundedReceiver<Incoming>>,
}

impl<W> fmt::Debug for GuardedListener<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedListener").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl<W: Wire> GuardedListener<W> {
    pub(crate) async fn bind(parts: Parts<W>, endpoint: &Endpoint) -> Result<Self, Source> {
        let Parts { guard, wire, security } = parts;
        let tcp = TcpListener::bind((endpoint.host(), endpoint.port())).await?;
        let id = security.as_ref().map(Security::id);
        let endpoint = endpoint.with_port(tcp.local_addr()?.port()).with_id(id);
        // Bounded by the requests in flight of all connections.
        let (sender, receiver) = mpsc::unbounded_channel();
        let server = Arc::new(Server {
            guard,
            wire,
            security,
            inbox: Inbox { requests: sender, tasks: TaskTracker::new() },
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        });
        server.inbox.tasks.spawn(Arc::clone(&server).accept(tcp));
        Ok(Self { endpoint, server, requests: tokio::sync::Mutex::new(receiver) })
    }
}

#[async_trait]
impl<W: Wire> Listener for GuardedListener<W> {
    async fn accept(&self) -> Result<Incoming, TransportError> {
        let next = async { self.requests.lock().await.recv().await };
        tokio::select! {
            biased;
            () = self.server.stop.cancelled() => Err(TransportError::Closed),
            incoming = next => incoming.ok_or(TransportError::Closed),
        }
    }

    fn local_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn shutdown(&self, grace: Duration) {
        self.server.stop.cancel();
        self.server.inbox.tasks.close();
        if tokio::time::timeout(grace, self.server.inbox.tasks.wait()).await.is_err() {
            self.server.kill.cancel();
            self.server.inbox.tasks.wait().await;
        }
        self.server.kill.cancel();
    }
}

impl<W> Drop for GuardedListener<W> {
    fn drop(&mut self) {
        self.server.stop.cancel();
        self.server.kill.cancel();
    }
}

impl<W: Wire> Server<W> {
    /// Admits connections until the listener stops.
    async fn accept(self: Arc<Self>, tcp: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => match self.guard.admission.admit(address.ip()) {
                    Ok(ticket) => {
                        self.inbox.tasks.spawn(Arc::clone(&self).serve(stream, address, ticket));
                    }
                    Err(reason) => self.guard.log.note(&address, &reason),
                },
                Err(error) => {
                    self.guard.log.note(&"a new connection", &CutOff::Io(error));
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }

    /// One connection from its greeting to its end.
    async fn serve(self: Arc<Self>, stream: TcpStream, address: SocketAddr, ticket: Ticket) {
        let end = self.kill.child_token();
        // However it ends, those above learn of it.
        let ended = end.clone().drop_guard();
        let handle = ConnectionHandle::new(end.clone());
        let reason = tokio::select! {
            biased;
            () = end.cancelled() => {
                if self.kill.is_cancelled() { CutOff::Local } else { CutOff::FromAbove }
            }
            () = ticket.lost() => CutOff::TooMany("in all, and the most from this address"),
            ended = self.conduct(stream, address, handle) => ended.err().unwrap_or(CutOff::Closed),
        };
        drop((ended, ticket));
        self.guard.log.note(&address, &reason);
    }

    async fn conduct(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        handle: ConnectionHandle,
    ) -> Result<(), CutOff> {
        socket::tune(&stream, self.guard.settings.stalled)?;
        let until = Instant::now() + self.guard.settings.handshake;
        let stream = match &self.security {
            None => Stream::Plain(stream),
            Some(security) => tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(CutOff::Local),
                secured = timeout_at(until, security.accept(stream)) => {
                    secured.map_err(|_| CutOff::HandshakeTimeout)??
                }
            },
        };
        W::serve(self, Accepted { stream, address, until, handle }).await
    }
}
