//! Chooses the transport for an endpoint, prefers the better of several endpoints, and shares connections.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::error::TransportError;
use super::{Connection, Listener, Transport};
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;

/// How many connections stay open although nobody uses them at the moment.
const KEPT: usize = 32;

/// The transports of a node by their scheme, and its open connections by their endpoint.
#[derive(Debug)]
pub struct Dialer {
    transports: Vec<Arc<dyn Transport>>,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    open: HashMap<Endpoint, Weak<dyn Connection>>,
    /// The latest, so that many short uses in a row share one; the oldest first.
    kept: VecDeque<Arc<dyn Connection>>,
}

impl Connections {
    fn get(&self, endpoint: &Endpoint) -> Option<Arc<dyn Connection>> {
        self.open.get(endpoint).and_then(Weak::upgrade)
    }

    fn insert(&mut self, connection: &Arc<dyn Connection>) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Arc::clone(connection));
        self.open.retain(|_, connection| connection.strong_count() > 0);
        self.open.insert(connection.endpoint().clone(), Arc::downgrade(connection));
    }
}

impl Dialer {
    /// A dialer over these transports, those that are preferred first.
    pub fn new(transports: Vec<Arc<dyn Transport>>) -> Self {
        Self { transports, connections: Mutex::default() }
    }

    /// Another one over the same transports, each with something around it.
    pub fn through(&self, wrap: impl Fn(Arc<dyn Transport>) -> Arc<dyn Transport>) -> Self {
        Self::new(self.transports.iter().cloned().map(wrap).collect())
    }

    fn transport(&self, endpoint: &Endpoint) -> Result<&dyn Transport, TransportError> {
        self.transports
            .iter()
            .find(|transport| transport.scheme() == endpoint.scheme())
            .map(|found| &**found)
            .ok_or_else(|| {
                let known: Vec<_> = self.transports.iter().map(|transport| transport.scheme()).collect();
                TransportError::InvalidEndpoint {
                    endpoint: endpoint.clone(),
                    problem: format!("its scheme is not one of {}", known.join(", ")),
                }
            })
    }

    /// Those of the endpoints of the node with this id that can be dialled here, in the order in which to try them: that of
    /// the transports, and of several with one scheme the order in which the node told them. Where a transport authenticates,
    /// nobody else than this node will do, whatever was told.
    pub fn preferred(&self, id: PeerId, endpoints: &[Endpoint]) -> Vec<Endpoint> {
        let known = |endpoint: &Endpoint| {
            let rank = self.transports.iter().position(|known| known.scheme() == endpoint.scheme())?;
            let id = Some(id).filter(|_| self.transports[rank].identity().is_some());
            Some((rank, endpoint.with_id(id)))
        };
        let mut known: Vec<_> = endpoints.iter().filter_map(known).collect();
        known.sort_by_key(|(rank, _)| *rank);
        known.into_iter().map(|(_, endpoint)| endpoint).collect()
    }

    /// The connection to the endpoint; the same one for all who hold it at the same time.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        if let Some(open) = self.connections.lock().get(endpoint) {
            return Ok(open);
        }
        let new = self.transport(endpoint)?.connect(endpoint).await?;
        let mut connections = self.connections.lock();
        // Another task may have been faster: then its connection is the one that is shared.
        if let Some(open) = connections.get(endpoint) {
            return Ok(open);
        }
        connections.insert(&new);
        Ok(new)
    }

    /// Listens at the endpoint.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.transport(endpoint)?.bind(endpoint).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::memory::MemoryNetwork;
    use async_trait::async_trait;

    #[derive(Debug)]
    struct Named(&'static str, bool);

    #[async_trait]
    impl Transport for Named {
        fn scheme(&self) -> &'static str {
            self.0
        }

        fn identity(&self) -> Option<PeerId> {
            self.1.then(|| PeerId::from_bytes([0; 32]))
        }

        async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
            MemoryNetwork::new().transport().connect(endpoint).await
        }

        async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
            MemoryNetwork::new().transport().bind(endpoint).await
        }
    }

    #[test]
    fn the_order_of_the_transports_decides_and_unknown_schemes_are_left_out() {
        let dialer = Dialer::new(vec![Arc::new(Named("fast", true)), Arc::new(Named("slow", false))]);
        let (id, another) = (PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32]));
        let told = ["slow://a:1", "other://a:2", "fast://b:3", &format!("fast://{another}@a:4")];
        let endpoints = told.map(|endpoint| endpoint.parse::<Endpoint>().unwrap());
        let preferred: Vec<_> = dialer.preferred(id, &endpoints).iter().map(ToString::to_string).collect();
        assert_eq!(preferred, [&format!("fast://{id}@b:3"), &format!("fast://{id}@a:4"), "slow://a:1"]);
    }
}
