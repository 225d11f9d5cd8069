//! The generic transport over guarded streams.

use std::sync::Arc;

use async_trait::async_trait;
use enjambre_core::transport::metrics::TransportMetrics;
use enjambre_core::transport::{check_bind, check_connect};
use enjambre_core::{Connection, Endpoint, Listener, PeerId, Transport, TransportError};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::connection::GuardedConnection;
use crate::guard::Guard;
use crate::guard::secure::Security;
use crate::listener::GuardedListener;
use crate::wire::{Parts, Wire};

/// A transport that reports its use of the shared limits.
pub trait GuardedTransport: Transport {
    /// The number of accepted connections of all transports with the same limits.
    fn connections(&self) -> usize;

    /// The number of reply bytes reserved or queued by all transports with the same limits.
    fn queued_reply_bytes(&self) -> usize;
}

/// A transport with a wire format over TCP, or over TLS.
#[derive(Debug)]
pub(crate) struct StreamTransport<W> {
    parts: Arc<Parts<W>>,
}

impl<W: Wire> StreamTransport<W> {
    pub(crate) fn new(guard: Arc<Guard>, security: Option<Security>) -> Self {
        Self { parts: Arc::new(Parts { guard, wire: W::default(), security, metrics: Arc::default() }) }
    }
}

impl<W: Wire> GuardedTransport for StreamTransport<W> {
    fn connections(&self) -> usize {
        self.parts.guard.limiter.connections()
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

    async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
        if endpoint.address().is_some() {
            return Ok(vec![endpoint.clone()]);
        }
        let lookup = lookup_host((endpoint.host(), endpoint.port()));
        let found = timeout(self.parts.guard.settings.handshake_timeout, lookup).await;
        let found = found.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let unreachable =
            |error| TransportError::Unreachable { endpoint: endpoint.clone(), source: Box::new(error) };
        let addresses = found.map_err(unreachable)?;
        Ok(addresses.map(|address| endpoint.with_address(address.ip().to_canonical())).collect())
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        check_connect(self, endpoint)?;
        Ok(Arc::new(GuardedConnection::new(Arc::clone(&self.parts), endpoint.clone())))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        check_bind(self, endpoint)?;
        match GuardedListener::bind(Arc::clone(&self.parts), endpoint).await {
            Ok(listener) => Ok(Arc::new(listener)),
            Err(source) => Err(TransportError::Bind { endpoint: endpoint.clone(), source }),
        }
    }

    fn metrics(&self) -> Option<&TransportMetrics> {
        Some(&self.parts.metrics)
    }
}
