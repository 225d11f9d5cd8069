//! The answering side: a guarded TCP listener, with a ROUTER behind each accepted connection.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::calls::Activity;
use enjambre_core::transport::error::{Source, TransportError};
use enjambre_core::transport::{ConnectionId, Incoming, Listener, Message, PeerInfo, ReplySink, envelope};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeromq::{RouterRecvHalf, RouterSocket, SocketRecv, ZmqMessage};

use super::Shared;
use super::reply::{Remote, ZmqReply};
use crate::guard::admission::Ticket;
use crate::guard::cutoff::CutOff;
use crate::guard::frame::Direction;
use crate::guard::handshake::{Introduction, shake_hands};
use crate::guard::socket;
use crate::guard::splice::{self, Emptied, MAX_PONGS, RequestGate};

/// How long accepting pauses when the system refuses another connection, for want of descriptors above all.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Server {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Incoming>,
    /// No more connections and requests; replies that were given are still sent.
    stop: CancellationToken,
    /// Everything ends now.
    kill: CancellationToken,
    tasks: TaskTracker,
}

pub(super) struct ZmqListener {
    endpoint: Endpoint,
    server: Arc<Server>,
    requests: tokio::sync::Mutex<mpsc::UnboundedReceiver<Incoming>>,
}

impl fmt::Debug for ZmqListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZmqListener").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl ZmqListener {
    pub(super) async fn bind(shared: Arc<Shared>, endpoint: &Endpoint) -> Result<Self, Source> {
        let tcp = TcpListener::bind((endpoint.host(), endpoint.port())).await?;
        let endpoint = endpoint.with_port(tcp.local_addr()?.port());
        // Bounded by the requests in flight of all connections.
        let (sender, receiver) = mpsc::unbounded_channel();
        let server = Arc::new(Server {
            shared,
            requests: sender,
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        server.tasks.spawn(Arc::clone(&server).accept(tcp));
        Ok(Self { endpoint, server, requests: tokio::sync::Mutex::new(receiver) })
    }
}

#[async_trait]
impl Listener for ZmqListener {
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
        self.server.tasks.close();
        if tokio::time::timeout(grace, self.server.tasks.wait()).await.is_err() {
            self.server.kill.cancel();
            self.server.tasks.wait().await;
        }
        self.server.kill.cancel();
    }
}

impl Drop for ZmqListener {
    fn drop(&mut self) {
        self.server.stop.cancel();
        self.server.kill.cancel();
    }
}

impl Server {
    /// Admits connections until the listener stops.
    async fn accept(self: Arc<Self>, tcp: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => match self.shared.admission.admit(address.ip()) {
                    Ok(ticket) => {
                        self.tasks.spawn(Arc::clone(&self).serve(stream, address, ticket));
                    }
                    Err(reason) => self.shared.log.note(&address, &reason),
                },
                Err(error) => {
                    self.shared.log.note(&"a new connection", &CutOff::Io(error));
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
        let reason = tokio::select! {
            biased;
            () = self.kill.cancelled() => CutOff::Local,
            ended = self.conduct(stream, address) => ended.err().unwrap_or(CutOff::Closed),
        };
        drop(ticket);
        self.shared.log.note(&address, &reason);
    }

    async fn conduct(&self, mut public: TcpStream, address: SocketAddr) -> Result<(), CutOff> {
        let settings = &self.shared.settings;
        let connection = ConnectionId::next();
        // Ours, whatever the remote calls itself: nobody can take another's place.
        let identity = Bytes::copy_from_slice(&[&b"c"[..], &connection.0.to_be_bytes()].concat());
        let greeting = async {
            socket::tune(&public, settings.stalled)?;
            let us = Introduction { socket_type: "ROUTER", identity: b"" };
            shake_hands(&mut public, us, &["DEALER", "REQ"]).await?;
            let guard = Introduction { socket_type: "DEALER", identity: &identity };
            self.shared.doorway.connect::<RouterSocket>(guard, "ROUTER").await
        };
        let (router, mut inner) = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(CutOff::Local),
            greeted = tokio::time::timeout(settings.handshake, greeting) => {
                greeted.map_err(|_| CutOff::HandshakeTimeout)??
            }
        };
        let (router, received) = router.split();
        let remote = Arc::new(Remote {
            info: PeerInfo { connection, address: Some(address.ip().to_canonical()), identity: None },
            identity,
            gate: RequestGate::new(settings.in_flight, settings.header),
            limits: settings.message_limits(),
            budget: self.shared.budget.connection(),
            router: tokio::sync::Mutex::new(router),
            queued: Mutex::default(),
            emptied: Emptied::default(),
            closed: CancellationToken::new(),
            failed: CancellationToken::new(),
        });
        let end = ConnectionEnd(&remote);
        let requests = Requests {
            remote: Arc::clone(&remote),
            sender: self.requests.clone(),
            tasks: self.tasks.clone(),
        };
        self.tasks.spawn(requests.receive(received));
        let ended = self.carry(&remote, &mut public, &mut inner).await;
        drop(end);
        ended
    }

    /// Carries messages until the connection ends.
    async fn carry(
        &self,
        remote: &Arc<Remote>,
        public: &mut TcpStream,
        inner: &mut UnixStream,
    ) -> Result<(), CutOff> {
        let settings = &self.shared.settings;
        let activity = Activity::default();
        let (pong_sender, mut pongs) = mpsc::channel(MAX_PONGS);
        let direction = Direction::Requests {
            header: settings.header as u64,
            payload: settings.payload as u64,
            frames: settings.frames,
        };
        let stalled = settings.stalled;
        {
            let (mut from_public, mut to_public) = public.split();
            let (mut from_inner, mut to_inner) = inner.split();
            let sent = |messages| remote.sent(messages);
            let mut outbound = pin!(splice::outbound(
                &mut from_inner,
                &mut to_public,
                sent,
                &activity,
                &mut pongs,
                stalled,
                splice::BULK
            ));
            {
                let inbound = splice::inbound(
                    &mut from_public,
                    &mut to_inner,
                    direction,
                    &**remote,
                    &activity,
                    &pong_sender,
                    stalled,
                );
                let busy = || remote.gate.in_flight() > 0 || remote.has_queued();
                tokio::select! {
                    ended = inbound => return ended,
                    ended = &mut outbound => return ended,
                    () = splice::idle(&activity, settings.idle, busy) => return Err(CutOff::Idle),
                    () = remote.failed.cancelled() => return Err(CutOff::Local),
                    () = self.stop.cancelled() => {}
                }
            }
            // Stopping: no more requests, and no replies but those that were given.
            drop(remote.router.lock().await);
            remote.closed.cancel();
            tokio::select! {
                ended = outbound => return ended,
                () = remote.emptied.wait(|| !remote.has_queued()) => {}
            }
        }
        tokio::io::AsyncWriteExt::shutdown(public).await?;
        splice::linger(public).await;
        Err(CutOff::Local)
    }
}

/// However a connection ends, nobody waits for room for its replies any more, and what they held is free again.
struct ConnectionEnd<'a>(&'a Remote);

impl Drop for ConnectionEnd<'_> {
    fn drop(&mut self) {
        self.0.closed.cancel();
        let queued = std::mem::take(&mut *self.0.queued.lock());
        drop(queued);
    }
}

/// Takes the requests of one connection from its ROUTER.
struct Requests {
    remote: Arc<Remote>,
    sender: mpsc::UnboundedSender<Incoming>,
    tasks: TaskTracker,
}

impl Requests {
    async fn receive(self, mut router: RouterRecvHalf) {
        loop {
            let received = tokio::select! {
                biased;
                () = self.remote.closed.cancelled() => return,
                received = router.recv() => received,
            };
            match received {
                Ok(message) => self.hand_over(message),
                Err(error) => {
                    // The guard lets nothing through that could make it fail.
                    tracing::error!(%error, "the socket behind the guard failed");
                    return self.remote.failed.cancel();
                }
            }
        }
    }

    fn hand_over(&self, message: ZmqMessage) {
        let mut frames: VecDeque<Bytes> = message.into_vecdeque();
        // The identity, which is known.
        frames.pop_front();
        let request = frames.iter().map(Bytes::len).sum();
        let delimited = frames.len() > 1 && frames[0].is_empty();
        if delimited {
            frames.pop_front();
        }
        let remote = Arc::clone(&self.remote);
        let reply = Box::new(ZmqReply { remote, request, delimited, reserved: None });
        let header = frames.pop_front().unwrap_or_default();
        let id = envelope::read(&header).and_then(|envelope| envelope.id);
        let problem = if !frames.is_empty() {
            "a request has no payload"
        } else if id.is_none() {
            "the header is not a CBOR map with v and id"
        } else {
            // A listener that is gone answers nothing.
            let _ = self.sender.send(Incoming { header, peer: self.remote.info.clone(), reply });
            return;
        };
        let answer = Message { header: envelope::malformed_reply(id, problem), payload: Bytes::new() };
        // Bounded by the requests in flight, and ends with the connection. In a task of its own, for there may be no
        // room for it yet.
        self.tasks.spawn(async move {
            let _ = reply.send(answer).await;
        });
    }
}
