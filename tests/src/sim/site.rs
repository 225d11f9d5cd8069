//! The places of nodes in the simulated network: their addresses, keys and transports.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{Endpoint, KeyPair, Transport};

use super::flaw::Flaw;

/// A host outside the swarm.
pub const THIRD_PARTY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The addresses of every name.
pub const NAMED: [Ipv4Addr; 3] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254), THIRD_PARTY];
/// Hosts that a node must not announce.
pub const FOREIGN: [&str; 7] =
    ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "[fe80::1]", "third-party.example", "192.0.2.1"];
const PORT: u16 = 1;
const PLAINTEXT_PORT: u16 = 2;

/// The role of a node, which determines its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An honest tracker.
    Tracker,
    /// A peer.
    Peer,
    /// A peer that sends false requests to trackers.
    Stranger,
    /// A tracker that relays requests and forges providers.
    MaliciousTracker,
    /// A provider that never completes a reply.
    SlowProvider,
}

impl Role {
    const ALL: [Self; 5] =
        [Self::Tracker, Self::Peer, Self::Stranger, Self::MaliciousTracker, Self::SlowProvider];

    /// Returns the role of the node at an endpoint; `None` outside the swarm.
    pub fn at(endpoint: &Endpoint) -> Option<Self> {
        let Some(IpAddr::V4(address)) = endpoint.address() else { return None };
        let [10, 0, network, _] = address.octets() else { return None };
        Self::ALL.into_iter().find(|role| *role as u8 == network)
    }
}

/// The place of a node.
#[derive(Debug)]
pub struct Site {
    /// The key of the node.
    pub key: KeyPair,
    /// The endpoint of the node, with its id.
    pub endpoint: Endpoint,
    network: MemoryNetwork,
    /// The address that other nodes see.
    address: Option<IpAddr>,
}

impl Site {
    /// Creates the place of a node, whose number is unique among the nodes with this role.
    pub fn new(
        network: &MemoryNetwork,
        role: Role,
        number: usize,
        secret: [u8; 32],
        flaw: Option<Flaw>,
    ) -> Self {
        let key = KeyPair::from_secret(&secret);
        let number = u8::try_from(number + 1).expect("at most 255 nodes");
        let address = Ipv4Addr::new(10, 0, role as u8, number).into();
        let endpoint: Endpoint = format!("memory://{address}:{PORT}").parse().expect("a valid endpoint");
        let id = Some(key.peer_id()).filter(|_| flaw != Some(Flaw::UnauthenticatedNodes));
        let address = Some(address).filter(|_| flaw != Some(Flaw::HiddenAddresses));
        Self { key, endpoint: endpoint.with_id(id), network: network.clone(), address }
    }

    /// Returns the transport of the node.
    pub fn transport(&self) -> Arc<dyn Transport> {
        self.network.transport_at(self.address, self.endpoint.id())
    }

    /// Returns a transport of the node that does not authenticate.
    pub fn plaintext(&self) -> Arc<dyn Transport> {
        self.network.transport_at(self.address, None)
    }

    /// The endpoint of a tracker for connections without authentication.
    pub fn plaintext_endpoint(&self) -> Endpoint {
        self.endpoint.with_id(None).with_port(PLAINTEXT_PORT)
    }
}

/// Returns the endpoint at a port of a host.
pub fn endpoint(host: &str, port: u16) -> Endpoint {
    format!("memory://{host}:{port}").parse().expect("a valid endpoint")
}
