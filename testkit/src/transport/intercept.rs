//! A wrapper around a transport for tests that observe or change how a node connects and what it sends.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use enjambre_core::{
    Connection, Deadline, Endpoint, Listener, Message, PeerId, RequestId, Transport, TransportError,
};

/// Acts in place of a transport and its connections. Each method passes the operation on by default.
#[async_trait]
pub trait Interceptor: Debug + Send + Sync + 'static {
    /// As [`Transport::resolve`].
    async fn resolve(
        &self,
        inner: &dyn Transport,
        endpoint: &Endpoint,
    ) -> Result<Vec<Endpoint>, TransportError> {
        inner.resolve(endpoint).await
    }

    /// Is called before each new connection.
    fn connecting(&self, _endpoint: &Endpoint) {}

    /// As [`Connection::call`].
    async fn call(
        &self,
        inner: &dyn Connection,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        inner.call(id, header, deadline).await
    }
}

/// Wraps a transport.
pub fn intercepted(inner: Arc<dyn Transport>, interceptor: impl Interceptor) -> Arc<dyn Transport> {
    Arc::new(Intercepted { inner, interceptor: Arc::new(interceptor) })
}

#[derive(Debug)]
struct Intercepted<T: ?Sized, I> {
    inner: Arc<T>,
    interceptor: Arc<I>,
}

#[async_trait]
impl<I: Interceptor> Transport for Intercepted<dyn Transport, I> {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn identity(&self) -> Option<PeerId> {
        self.inner.identity()
    }

    async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
        self.interceptor.resolve(&*self.inner, endpoint).await
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        self.interceptor.connecting(endpoint);
        let inner = self.inner.connect(endpoint).await?;
        Ok(Arc::new(Intercepted { inner, interceptor: Arc::clone(&self.interceptor) }))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.inner.bind(endpoint).await
    }
}

#[async_trait]
impl<I: Interceptor> Connection for Intercepted<dyn Connection, I> {
    fn next_id(&self) -> RequestId {
        self.inner.next_id()
    }

    async fn call(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        self.interceptor.call(&*self.inner, id, header, deadline).await
    }

    fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::subject::Subject;
    use enjambre_core::MessageLimits;
    use enjambre_core::transport::memory::MemoryNetwork;

    #[derive(Debug)]
    struct PassThrough;

    impl Interceptor for PassThrough {}

    crate::transport_conformance!(Subject {
        transport: intercepted(MemoryNetwork::new().transport(), PassThrough),
        endpoint: "memory://node:0".parse().unwrap(),
        limits: MessageLimits::default(),
        guard: Box::new(()),
    });
}
