//! The answering side: a guarded TCP listener in front of a ROUTER on a private Unix socket.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
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
use zeromq::{RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketOptions, SocketRecv, ZmqMessage};

use super::Shared;
use super::private_dir::PrivateDir;
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
    /// The private socket of the ROUTER, in a folder that is kept as long.
    path: PathBuf,
    _dir: Arc<PrivateDir>,
    router: RouterSendHalf,
    remotes: Mutex<HashMap<Bytes, Arc<Remote>>>,
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
        let dir = shared.dir()?;
        let path = dir.socket();
        let mut options = SocketOptions::default();
        options.no_connect_timeout();
        let mut router = RouterSocket::with_options(options);
        router.bind_listener(UnixListener::bind(&path)?).await?;
        let (router, received) = router.split();
        // Bounded by the requests in flight of all connections.
        let (sender, receiver) = mpsc::unbounded_channel();
        let server = Arc::new(Server {
            shared,
            path,
            _dir: dir,
            router,
            remotes: Mutex::default(),
            requests: sender,
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        tokio::spawn(Arc::clone(&server).receive(received));
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
        let connection = ConnectionId::next();
        let closed = CancellationToken::new();
        let remote = Arc::new(Remote {
            info: PeerInfo { connection, address: Some(address.ip().to_canonical()), identity: None },
            // Ours, whatever the remote calls itself: nobody can take another's place.
            identity: Bytes::copy_from_slice(&[&b"c"[..], &connection.0.to_be_bytes()].concat()),
            gate: RequestGate::new(self.shared.settings.in_flight, self.shared.settings.header),
            limits: self.shared.settings.message_limits(),
            budget: self.shared.budget.connection(),
            router: tokio::sync::Mutex::new(self.router.clone()),
            queued: Mutex::default(),
            emptied: Emptied::default(),
            closed,
        });
        let reason = tokio::select! {
            biased;
            () = self.kill.cancelled() => CutOff::Local,
            ended = self.conduct(&remote, stream) => ended.err().unwrap_or(CutOff::Closed),
        };
        remote.closed.cancel();
        self.remotes.lock().remove(&remote.identity);
        // What waited to be sent never will be.
        let queued = std::mem::take(&mut *remote.queued.lock());
        drop((queued, ticket));
        self.shared.log.note(&address, &reason);
    }

    async fn conduct(&self, remote: &Arc<Remote>, mut public: TcpStream) -> Result<(), CutOff> {
        let settings = &self.shared.settings;
        let greeting = async {
            socket::tune(&public, settings.stalled)?;
            let router = Introduction { socket_type: "ROUTER", identity: b"" };
            shake_hands(&mut public, router, &["DEALER", "REQ"]).await?;
            // Known before the crate can hand over its first request.
            self.remotes.lock().insert(remote.identity.clone(), Arc::clone(remote));
            let mut inner = UnixStream::connect(&self.path).await?;
            let dealer = Introduction { socket_type: "DEALER", identity: &remote.identity };
            shake_hands(&mut inner, dealer, &["ROUTER"]).await?;
            Ok::<_, CutOff>(inner)
        };
        let mut inner = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(CutOff::Local),
            greeted = tokio::time::timeout(settings.handshake, greeting) => {
                greeted.map_err(|_| CutOff::HandshakeTimeout)??
            }
        };

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
                Some(&activity),
                &mut pongs,
                stalled
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
        tokio::io::AsyncWriteExt::shutdown(&mut public).await?;
        splice::linger(&mut public).await;
        Err(CutOff::Local)
    }

    /// Hands over what the ROUTER receives. It must be polled all the time: that is how the crate notices that a
    /// connection is gone.
    async fn receive(self: Arc<Self>, mut router: RouterRecvHalf) {
        loop {
            let received = tokio::select! {
                biased;
                () = self.kill.cancelled() => return,
                received = router.recv() => received,
            };
            match received {
                Ok(message) => self.request(message),
                Err(error) => {
                    tracing::error!(%error, "the socket behind the guard failed");
                    return self.kill.cancel();
                }
            }
        }
    }

    fn request(&self, message: ZmqMessage) {
        let mut frames: VecDeque<Bytes> = message.into_vecdeque();
        let Some(remote) =
            frames.pop_front().and_then(|identity| self.remotes.lock().get(&identity).cloned())
        else {
            // Gone meanwhile.
            return;
        };
        let request = frames.iter().map(Bytes::len).sum();
        let delimited = frames.len() > 1 && frames[0].is_empty();
        if delimited {
            frames.pop_front();
        }
        let peer = remote.info.clone();
        let reply = Box::new(ZmqReply { remote, request, delimited, reserved: None });
        let header = frames.pop_front().unwrap_or_default();
        let id = envelope::read(&header).and_then(|envelope| envelope.id);
        let problem = if !frames.is_empty() {
            "a request has no payload"
        } else if id.is_none() {
            "the header is not a CBOR map with v and id"
        } else {
            // A listener that is gone answers nothing.
            let _ = self.requests.send(Incoming { header, peer, reply });
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
