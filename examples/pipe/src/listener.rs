//! The answering side: a socket, the connections accepted from it, and the way back for replies.

use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::transport::budget::{ConnectionBudget, ReplyBudget, ReplyReservation, Reservation};
use enjambre_core::transport::envelope;
use enjambre_core::{
    Activity, ConnectionHandle, ConnectionId, EncodedRequest, Endpoint, Incoming, Listener, Message,
    MessageLimits, PeerInfo, ReplySink, TransportError,
};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::frame;

const CONNECTIONS: usize = 1024;
/// Reply bytes that may be queued, in total and per connection.
const QUEUED_TOTAL: usize = 32 << 20;
const QUEUED_PER_CONNECTION: usize = 8 << 20;

/// A bound socket. Dropping it removes the socket file.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

impl Socket {
    /// Binds the socket. The lock file tells a socket in use from one that a crashed process left behind.
    pub(crate) fn bind(path: PathBuf) -> io::Result<Self> {
        let lock = File::create(format!("{}.lock", path.display()))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::ErrorKind::AddrInUse.into(),
            TryLockError::Error(error) => error,
        })?;
        let _ = std::fs::remove_file(&path);
        Ok(Self { listener: UnixListener::bind(&path)?, path, _lock: lock })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The state that the tasks of a listener share.
#[derive(Debug, Clone)]
struct Server {
    limits: MessageLimits,
    incoming: mpsc::UnboundedSender<Incoming>,
    budget: Arc<ReplyBudget>,
    /// Stops accepting; connections end once their queued replies are sent.
    stop: CancellationToken,
    /// Ends all connections immediately.
    abort: CancellationToken,
    tasks: TaskTracker,
}

/// A listener on one socket.
#[derive(Debug)]
pub(crate) struct PipeListener {
    endpoint: Endpoint,
    server: Server,
    /// Unbounded, but each connection has a limited number of requests in flight.
    requests: Mutex<mpsc::UnboundedReceiver<Incoming>>,
}

impl PipeListener {
    pub(crate) fn start(endpoint: Endpoint, socket: Socket, limits: MessageLimits) -> Self {
        let (incoming, requests) = mpsc::unbounded_channel();
        let server = Server {
            limits,
            incoming,
            budget: ReplyBudget::new(QUEUED_TOTAL, QUEUED_PER_CONNECTION),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        server.tasks.spawn(server.clone().accept_connections(socket));
        Self { endpoint, server, requests: Mutex::new(requests) }
    }
}

#[async_trait]
impl Listener for PipeListener {
    async fn accept(&self) -> Result<Incoming, TransportError> {
        tokio::select! {
            biased;
            () = self.server.stop.cancelled() => Err(TransportError::Closed),
            request = async { self.requests.lock().await.recv().await } => request.ok_or(TransportError::Closed),
        }
    }

    fn local_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn shutdown(&self, grace: Duration) {
        let Server { stop, abort, tasks, .. } = &self.server;
        stop.cancel();
        tasks.close();
        let _ = tokio::time::timeout(grace, tasks.wait()).await;
        abort.cancel();
        tasks.wait().await;
    }
}

impl Drop for PipeListener {
    fn drop(&mut self) {
        self.server.stop.cancel();
        self.server.abort.cancel();
    }
}

impl Server {
    async fn accept_connections(self, socket: Socket) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let accept = async {
            loop {
                let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
                match socket.listener.accept().await {
                    Ok((stream, _)) => {
                        let connection = self.clone().serve(stream);
                        self.tasks.spawn(async move {
                            connection.await;
                            drop(permit);
                        });
                    }
                    // For example, the process has no free file descriptors.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        self.stop.run_until_cancelled(accept).await;
    }

    /// Serves one connection until it ends.
    async fn serve(self, mut stream: UnixStream) {
        let (replies, mut queue) = mpsc::unbounded_channel();
        let closed = self.abort.child_token();
        let remote = Remote {
            info: PeerInfo {
                connection: ConnectionId::next(),
                handle: ConnectionHandle::new(closed.clone()),
                address: None,
                identity: None,
            },
            limits: self.limits,
            budget: self.budget.connection(None),
            replies,
            closed: closed.clone(),
        };
        let (read, write) = stream.split();
        tokio::select! {
            biased;
            () = closed.cancelled() => {}
            // Ends with the last queued reply after a stop.
            _ = send_replies(&mut queue, write, &self.stop) => {}
            _ = self.receive_requests(remote, BufReader::new(read)) => {}
        }
        closed.cancel();
    }

    async fn receive_requests(&self, remote: Remote, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let slots = Arc::new(Semaphore::new(self.limits.in_flight));
        loop {
            // A remote with too many requests in flight has to wait: its next request is not read.
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            let (header, payload) = frame::read_lengths(&mut from, &self.limits).await?;
            let header = frame::read_bytes(&mut from, header, &Activity::default()).await?;
            frame::skip(&mut from, payload).await?;
            let reply =
                Box::new(PipeReply { remote: remote.clone(), slot, reserved: ReplyReservation::default() });
            let parsed = match EncodedRequest::parse(header) {
                Ok(request) if payload > 0 => {
                    Err(envelope::malformed_reply(Some(request.id()), "a request has no payload"))
                }
                parsed => parsed,
            };
            // Both fail only after the end of the listener or of the connection.
            let _ = match parsed {
                Ok(request) => {
                    let incoming = Incoming { request, peer: remote.info.clone(), reply };
                    self.incoming.send(incoming).map_err(|_| TransportError::Closed)
                }
                Err(header) => reply.send(Message { header, payload: Bytes::new() }).await,
            };
        }
    }
}

/// A queued reply. Its slot and reservation are released after it was written.
#[derive(Debug)]
struct Reply {
    message: Message,
    _slot: OwnedSemaphorePermit,
    _reserved: Reservation,
}

/// Writes queued replies, until `stop` is cancelled and the queue is empty.
async fn send_replies(
    queue: &mut mpsc::UnboundedReceiver<Reply>,
    mut to: impl AsyncWrite + Unpin,
    stop: &CancellationToken,
) -> io::Result<()> {
    loop {
        let reply = tokio::select! {
            biased;
            reply = queue.recv() => reply,
            () = stop.cancelled(), if !queue.is_closed() => {
                // Later replies are refused; queued ones are still received.
                queue.close();
                continue;
            }
        };
        let Some(reply) = reply else { return Ok(()) };
        frame::write(&mut to, &reply.message).await?;
    }
}

/// The remote side of an accepted connection.
#[derive(Debug, Clone)]
struct Remote {
    info: PeerInfo,
    limits: MessageLimits,
    budget: Arc<ConnectionBudget>,
    replies: mpsc::UnboundedSender<Reply>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct PipeReply {
    remote: Remote,
    slot: OwnedSemaphorePermit,
    reserved: ReplyReservation,
}

#[async_trait]
impl ReplySink for PipeReply {
    async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError> {
        let Remote { budget, closed, .. } = &self.remote;
        self.reserved.reserve(budget, closed, bytes).await
    }

    async fn send(self: Box<Self>, message: Message) -> Result<(), TransportError> {
        let Self { remote, slot, reserved } = *self;
        let (message, fits) = remote.limits.fit(message);
        let reserved = reserved.complete(&remote.budget, &remote.closed, &message).await?;
        let reply = Reply { message, _slot: slot, _reserved: reserved };
        remote.replies.send(reply).map_err(|_| TransportError::Closed)?;
        fits
    }
}
