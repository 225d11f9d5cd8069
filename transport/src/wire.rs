//! What tells one transport over guarded TCP streams from another: how requests and replies lie on the stream.
//!
//! Everything else is written once: dialling and dialling again ([`crate::connection`]), accepting
//! ([`crate::listener`]), and answering ([`crate::remote`]).

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::calls::{Activity, Calls};
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Listener, Transport, check_bind, check_dial};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::GuardedTransport;
use crate::connection::GuardedConnection;
use crate::guard::Guard;
use crate::guard::cutoff::CutOff;
use crate::listener::{GuardedListener, Server};

/// How requests and replies lie on a stream. The value is what all connections of a transport share.
pub(crate) trait Wire: Debug + Default + Send + Sync + 'static {
    /// The scheme of its endpoints.
    const SCHEME: &'static str;
    /// One established connection of the asking side.
    type Link: Link;

    /// Greets the other side, and starts to carry messages. The caller sets the time limit.
    fn dialled(
        self: Arc<Self>,
        dialled: Dialled,
    ) -> impl Future<Output = Result<Arc<Self::Link>, CutOff>> + Send;

    /// Serves one accepted connection from its greeting to its end.
    fn serve(
        server: &Server<Self>,
        stream: TcpStream,
        address: SocketAddr,
    ) -> impl Future<Output = Result<(), CutOff>> + Send;
}

/// A stream that was just made, and what is known of the connection that it is for.
pub(crate) struct Dialled {
    pub(crate) guard: Arc<Guard>,
    pub(crate) stream: TcpStream,
    pub(crate) endpoint: Endpoint,
    /// Is told of every byte that comes.
    pub(crate) activity: Activity,
    /// Ends the link.
    pub(crate) kill: CancellationToken,
}

/// One established connection of the asking side. It is thrown away when it ends.
pub(crate) trait Link: Debug + Send + Sync + 'static {
    /// The calls under way over it.
    fn calls(&self) -> &Arc<Calls>;

    /// Whether it can still be used.
    fn is_up(&self) -> bool;

    /// Sends a request; one that cannot be sent ends the link, and with it the call.
    fn send(&self, header: Bytes) -> impl Future<Output = ()> + Send;
}

/// A transport over guarded streams. Its limits hold for all its listeners together.
#[derive(Debug)]
pub(crate) struct StreamTransport<W> {
    guard: Arc<Guard>,
    wire: Arc<W>,
}

impl<W: Wire> StreamTransport<W> {
    pub(crate) fn new(guard: Arc<Guard>) -> Self {
        Self { guard, wire: Arc::default() }
    }
}

impl<W: Wire> GuardedTransport for StreamTransport<W> {
    fn connections(&self) -> usize {
        self.guard.admission.connections()
    }

    fn queued_reply_bytes(&self) -> usize {
        self.guard.budget.taken()
    }
}

#[async_trait]
impl<W: Wire> Transport for StreamTransport<W> {
    fn scheme(&self) -> &'static str {
        W::SCHEME
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        check_dial(W::SCHEME, endpoint)?;
        let (guard, wire) = (Arc::clone(&self.guard), Arc::clone(&self.wire));
        Ok(Arc::new(GuardedConnection::new(guard, wire, endpoint.clone())))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        check_bind(W::SCHEME, endpoint)?;
        match GuardedListener::bind(Arc::clone(&self.guard), Arc::clone(&self.wire), endpoint).await {
            Ok(listener) => Ok(Arc::new(listener)),
            Err(source) => Err(TransportError::Bind { endpoint: endpoint.clone(), source }),
        }
    }
}
