//! Fixtures of the download tests: a static provider list and endpoints on a memory network.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::provider::ProviderSource;
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{
    Connection, Deadline, Dialer, FileId, Listener, Message, PeerId, Provider, RequestId, TransportError,
};
use enjambre_testkit::transport::intercept::Interceptor;

/// A static list of providers, in place of a tracker.
#[derive(Default)]
pub(super) struct StaticProviders {
    pub(super) list: Mutex<Vec<Provider>>,
}

#[async_trait]
impl ProviderSource for StaticProviders {
    async fn providers(&self, _id: &FileId) -> Result<Vec<Provider>, String> {
        Ok(self.list.lock().clone())
    }
}

/// The listener of a node on a memory network.
pub(super) struct NodeEndpoint {
    pub(super) dialer: Arc<Dialer>,
    pub(super) listener: Arc<dyn Listener>,
    pub(super) provider: Provider,
}

impl NodeEndpoint {
    /// The endpoint of a provider of a file of this size.
    pub(super) async fn new(network: &MemoryNetwork, name: &str, size: u64, complete: bool) -> Self {
        let dialer = Arc::new(Dialer::new(vec![network.transport()]));
        let endpoint = format!("memory://{name}:1").parse().unwrap();
        let listener = dialer.bind(&endpoint).await.unwrap();
        let peer = PeerId::from_bytes(*blake3::hash(name.as_bytes()).as_bytes());
        Self { dialer, listener, provider: Provider { peer, endpoints: vec![endpoint], size, complete } }
    }

    /// Serves requests with this handler.
    pub(super) fn serve(&self, handler: Arc<dyn Handler>) -> JoinHandle<()> {
        tokio::spawn(serve(Arc::clone(&self.listener), handler))
    }
}

/// Remotes that send a byte now and then, so that no connection is ever silent.
#[derive(Debug)]
pub(super) struct NeverSilent;

#[async_trait]
impl Interceptor for NeverSilent {
    async fn call(
        &self,
        inner: &dyn Connection,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        let deadline = match deadline {
            Deadline::Silence(_) => Deadline::Total(Duration::MAX),
            total => total,
        };
        inner.call(id, header, deadline).await
    }
}
