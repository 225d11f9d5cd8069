//! Selects the transport for an endpoint, orders the endpoints of a node by preference, and shares connections.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::error::TransportError;
use super::interface::{Connection, Listener, Transport};
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;

/// The number of recent connections that stay open while they are unused.
const MAX_IDLE: usize = 32;

/// The transports of a node by scheme, and its open connections by endpoint.
#[derive(Debug)]
pub struct Dialer {
    transports: Vec<Arc<dyn Transport>>,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    open: HashMap<Endpoint, Weak<dyn Connection>>,
    /// The most recent connections, oldest first, so that many short uses in a row share one.
    recent: VecDeque<Arc<dyn Connection>>,
}

impl Connections {
    fn get(&self, endpoint: &Endpoint) -> Option<Arc<dyn Connection>> {
        self.open.get(endpoint).and_then(Weak::upgrade)
    }

    fn insert(&mut self, connection: &Arc<dyn Connection>) {
        if self.recent.len() == MAX_IDLE {
            self.recent.pop_front();
        }
        self.recent.push_back(Arc::clone(connection));
        self.open.retain(|_, connection| connection.strong_count() > 0);
        self.open.insert(connection.endpoint().clone(), Arc::downgrade(connection));
    }
}

impl Dialer {
    /// Creates a dialer over these transports, in order of preference.
    pub fn new(transports: Vec<Arc<dyn Transport>>) -> Self {
        Self { transports, connections: Mutex::default() }
    }

    /// Creates a dialer over the same transports, each in a wrapper.
    pub fn wrapped(&self, wrap: impl Fn(Arc<dyn Transport>) -> Arc<dyn Transport>) -> Self {
        Self::new(self.transports.iter().cloned().map(wrap).collect())
    }

    /// The transports, in order of preference.
    pub fn transports(&self) -> &[Arc<dyn Transport>] {
        &self.transports
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
                    problem: format!("unknown scheme; use one of {}", known.join(", ")),
                }
            })
    }

    /// Returns the endpoints of a node that this dialer supports, in order of preference: the order of the transports, and
    /// within a scheme the order in `endpoints`. For authenticating transports, sets the id of the node in the endpoints.
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

    /// Returns the endpoint once for each address of its host; see [`Transport::resolve`].
    pub async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
        self.transport(endpoint)?.resolve(endpoint).await
    }

    /// Returns the connection to the endpoint if there is one already.
    pub fn existing(&self, endpoint: &Endpoint) -> Option<Arc<dyn Connection>> {
        self.connections.lock().get(endpoint)
    }

    /// Returns the connection to the endpoint. Concurrent users share one connection.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        if let Some(open) = self.existing(endpoint) {
            return Ok(open);
        }
        let new = self.transport(endpoint)?.connect(endpoint).await?;
        let mut connections = self.connections.lock();
        // Another task may have connected in the meantime.
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
    fn preferred_endpoints_follow_the_order_of_the_transports() {
        let dialer = Dialer::new(vec![Arc::new(Named("fast", true)), Arc::new(Named("slow", false))]);
        let (id, another) = (PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32]));
        let listed = ["slow://a:1", "other://a:2", "fast://b:3", &format!("fast://{another}@a:4")];
        let endpoints = listed.map(|endpoint| endpoint.parse::<Endpoint>().unwrap());
        let preferred: Vec<_> = dialer.preferred(id, &endpoints).iter().map(ToString::to_string).collect();
        assert_eq!(preferred, [&format!("fast://{id}@b:3"), &format!("fast://{id}@a:4"), "slow://a:1"]);
    }
}
