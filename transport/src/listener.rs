//! The answering side: accepts connections and shuts down.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_core::transport::error::Source;
use enjambre_core::{ConnectionHandle, Endpoint, Incoming, Listener, TransportError, runtime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guard::connection_limiter::Ticket;
use crate::guard::disconnect::Disconnect;
use crate::guard::secure::Security;
use crate::guard::socket;
use crate::guard::stream::Stream;
use crate::wire::{Accepted, Inbox, Parts, Server, Wire};

/// Delay after a failed `accept`, which mostly means that the process has no free file descriptor.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

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
    pub(crate) async fn bind(parts: Arc<Parts<W>>, endpoint: &Endpoint) -> Result<Self, Source> {
        let tcp = socket::listen(endpoint).await?;
        let id = parts.security.as_ref().map(Security::id);
        let endpoint = endpoint.with_port(tcp.local_addr()?.port()).with_id(id);
        // Bounded by the outstanding requests of all connections.
        let (sender, receiver) = mpsc::unbounded_channel();
        let server = Arc::new(Server {
            parts,
            inbox: Inbox { requests: sender, tasks: TaskTracker::new() },
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        });
        runtime::spawn_in(&server.inbox.tasks, Arc::clone(&server).accept(tcp));
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
    /// Accepts connections until the listener stops.
    async fn accept(self: Arc<Self>, tcp: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => match self.parts.guard.limiter.admit(address.ip()) {
                    Ok(ticket) => {
                        let serving = Arc::clone(&self).serve(stream, address, ticket);
                        runtime::spawn_in(&self.inbox.tasks, serving);
                    }
                    Err(reason) => self.record_end(&address, &reason),
                },
                Err(error) => {
                    self.record_end(&"unknown", &Disconnect::of_accept(error));
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(ACCEPT_DELAY) => {}
                    }
                }
            }
        }
    }

    /// Serves a connection from its TLS handshake to its end.
    async fn serve(self: Arc<Self>, stream: TcpStream, address: SocketAddr, ticket: Ticket) {
        let end = self.kill.child_token();
        // Notifies the service of the end in every case.
        let ended = end.clone().drop_guard();
        let handle = ConnectionHandle::new(end.clone());
        let reason = tokio::select! {
            biased;
            () = end.cancelled() => {
                if self.kill.is_cancelled() { Disconnect::Local } else { Disconnect::ByService }
            }
            () = ticket.revoked() => self.parts.guard.limiter.too_many("in total, and most of them from this address"),
            ended = self.serve_stream(stream, address, handle) => ended.err().unwrap_or(Disconnect::Closed),
        };
        drop((ended, ticket));
        self.record_end(&address, &reason);
    }

    fn record_end(&self, remote: &dyn fmt::Display, reason: &Disconnect) {
        self.parts.guard.log.record(&self.parts.metrics, remote, reason);
    }

    async fn serve_stream(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        handle: ConnectionHandle,
    ) -> Result<(), Disconnect> {
        socket::configure(&stream, self.parts.guard.settings.stall_timeout)?;
        let deadline = Instant::now() + self.parts.guard.settings.handshake_timeout;
        let stream = match &self.parts.security {
            None => Stream::Left(stream),
            Some(security) => tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Disconnect::Local),
                secured = timeout_at(deadline, security.accept(stream)) => {
                    secured.map_err(|_| Disconnect::HandshakeTimeout)??
                }
            },
        };
        let _open = self.parts.metrics.inbound.enter();
        W::serve(self, Accepted { stream, address, deadline, handle }).await
    }
}
