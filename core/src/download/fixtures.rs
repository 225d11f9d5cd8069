//! What the tests of whole downloads share: who offers what, and where a node is.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::source::ProviderSource;
use crate::model::id::{FileId, PeerId};
use crate::model::record::Provider;
use crate::protocol::server::{Handler, serve};
use crate::transport::Listener;
use crate::transport::dialer::Dialer;
use crate::transport::memory::MemoryNetwork;

/// Who offers what, in place of a tracker.
#[derive(Default)]
pub(super) struct Directory {
    pub(super) providers: Mutex<Vec<Provider>>,
}

#[async_trait]
impl ProviderSource for Directory {
    async fn providers(&self, _id: &FileId) -> Result<Vec<Provider>, String> {
        Ok(self.providers.lock().clone())
    }
}

/// Where a node of this name listens in a network.
pub(super) struct Place {
    pub(super) dialer: Arc<Dialer>,
    pub(super) listener: Arc<dyn Listener>,
    pub(super) provider: Provider,
}

impl Place {
    /// Of one who offers a file of this size.
    pub(super) async fn new(network: &MemoryNetwork, name: &str, size: u64, complete: bool) -> Self {
        let dialer = Arc::new(Dialer::new(vec![network.transport()]));
        let endpoint = format!("memory://{name}:1").parse().unwrap();
        let listener = dialer.bind(&endpoint).await.unwrap();
        let peer = PeerId::from_bytes(*blake3::hash(name.as_bytes()).as_bytes());
        Self { dialer, listener, provider: Provider { peer, endpoints: vec![endpoint], size, complete } }
    }

    /// Answers whoever asks there.
    pub(super) fn serve(&self, handler: Arc<dyn Handler>) -> JoinHandle<()> {
        tokio::spawn(serve(Arc::clone(&self.listener), handler))
    }
}
