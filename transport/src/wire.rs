//! What tells one transport over guarded TCP streams from another: how requests and replies lie on the stream.
//!
//! Everything else is written once: dialling and dialling again ([`crate::connection`]), accepting
//! ([`crate::listener`]), and answering ([`crate::remote`]).

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::PeerId;
use enjambre_core::transport::calls::{Activity, Calls};
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Listener, Transport, check_bind, check_dial};
use tokio_util::sync::CancellationToken;

use crate::GuardedTransport;
use crate::connection::GuardedConnection;
use crate::guard::Guard;
use crate::guard::cutoff::CutOff;
use crate::guard::secure::Security;
use crate::guard::stream::Stream;
use crate::listener::{Accepted, GuardedListener, Server};

/// How requests and replies lie on a stream. The value is what all connections of a transport share.
pub(crate) trait Wire: Debug + Default + Send + Sync + 'static {
    /// The scheme of its endpoints on plain streams.
    const PLAIN: &'static str;
    /// The same on encrypted ones.
    const SECURE: &'static str;
    /// One established connection of the asking side.
    type Link: Link;

    /// Greets the other side, and starts to carry messages. The caller sets the time limit.
    fn dialled(
        self: Arc<Self>,
        dialled: Dialled,
    ) -> impl Future<Output = Result<Arc<Self::Link>, CutOff>> + Send;

    /// Serves one accepted connection from its greeting to its end.
    fn serve(server: &Server<Self>, accepted: Accepted) -> impl Future<Output = Result<(), CutOff>> + Send;
}

/// A stream that was just made, and what is known of the connection that it is for.
pub(crate) struct Dialled {
    pub(crate) guard: Arc<Guard>,
    pub(crate) stream: Stream,
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
    parts: Parts<W>,
}

/// What the listeners and connections of a transport share.
#[derive(Debug)]
pub(crate) struct Parts<W> {
    pub(crate) guard: Arc<Guard>,
    pub(crate) wire: Arc<W>,
    /// None on plain streams.
    pub(crate) security: Option<Security>,
}

impl<W> Clone for Parts<W> {
    fn clone(&self) -> Self {
        Self { guard: Arc::clone(&self.guard), wire: Arc::clone(&self.wire), security: self.security.clone() }
    }
}

impl<W: Wire> StreamTransport<W> {
    pub(crate) fn new(guard: Arc<Guard>, security: Option<Security>) -> Self {
        Self { parts: Parts { guard, wire: Arc::default(), security } }
    }
}

impl<W: Wire> GuardedTransport for StreamTransport<W> {
    fn connections(&self) -> usize {
        self.parts.guard.admission.connections()
    }

    fn queued_reply_bytes(&self) -> usize {
        self.parts.guard.budget.taken()
    }
}

#[async_trait]
impl<W: Wire> Transport for StreamTransport<W> {
    fn scheme(&self) -> &'static str {
        if self.parts.security.is_some() { W::SECURE } else { W::PLAIN }
    }

    fn identity(&self) -> Option<PeerId> {
        self.parts.security.as_ref().map(Security::id)
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        check_dial(self, endpoint)?;
        Ok(Arc::new(GuardedConnection::new(self.parts.clone(), endpoint.clone())))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        check_bind(self, endpoint)?;
        match GuardedListener::bind(self.parts.clone(), endpoint).await {
            Ok(listener) => Ok(Arc::new(listener)),
            Err(source) => Err(TransportError::Bind { endpoint: endpoint.clone(), source }),
        }
    }
}
