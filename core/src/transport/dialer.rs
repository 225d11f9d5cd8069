//! Chooses the transport for an endpoint, and shares connections.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::error::TransportError;
use super::{Connection, Listener, Transport};
use crate::model::endpoint::Endpoint;

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
    /// A dialer over these transports.
    pub fn new(transports: Vec<Arc<dyn Transport>>) -> Self {
        Self { transports, connections: Mutex::default() }
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
