//! Assembly of the replica store of a tracker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use enjambre_core::runtime::clock::SystemClock;
use enjambre_core::{Dialer, Endpoint, KeyPair};
use enjambre_swarm::catalogue::Catalogue;
use enjambre_swarm::tracker::replicas::{ReplicaParts, ReplicaStore};
use enjambre_swarm::tracker_client::trackers::Trackers;

use super::endpoints_file::dialable;
use crate::config::load::Loaded;
use crate::peer::services::{CloseMode, PeerServices};

/// The replica store of a tracker, with the library that contains the replicas.
#[derive(Debug)]
pub(super) struct Replicas {
    pub(super) store: Arc<ReplicaStore>,
    pub(super) services: PeerServices,
    #[cfg(feature = "http")]
    pub(super) trackers: Arc<Trackers>,
}

impl Replicas {
    /// Creates the store for a tracker that listens at these endpoints.
    pub(super) fn new(
        loaded: &Loaded,
        services: PeerServices,
        dialer: &Arc<Dialer>,
        key: KeyPair,
        catalogue: &Arc<Catalogue>,
        listen: &[Endpoint],
    ) -> Self {
        let tracker = listen.first().map(dialable);
        let trackers = Arc::new(Trackers::new(dialer, tracker));
        let advertise = &loaded.config.transport.advertise;
        let parts = ReplicaParts {
            downloader: Arc::clone(&services.downloader),
            members: services.members.clone(),
            catalogue: Arc::clone(catalogue),
            trackers: Arc::clone(&trackers),
            key,
            endpoints: if advertise.is_empty() { reachable(listen) } else { advertise.clone() },
            clock: Arc::new(SystemClock),
        };
        let store = ReplicaStore::new(parts, loaded.config.tracker.store.quota.get());
        Self {
            store,
            services,
            #[cfg(feature = "http")]
            trackers,
        }
    }

    /// Leaves the swarm, stops all fetches and closes the library.
    pub(super) async fn stop(&self) {
        tokio::join!(self.store.leave(), async {
            self.store.stop().await;
            self.services.close(CloseMode::Durable).await;
        });
    }
}

/// Returns the endpoints under which other peers reach the replicas. The tracker sees its own store connect from
/// loopback, so a wildcard address is replaced by the address of the interface with the default route, of IPv4 if there
/// is one.
fn reachable(listen: &[Endpoint]) -> Vec<Endpoint> {
    let outward = |any: IpAddr, remote: IpAddr| -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((any, 0))?;
        // Connecting a datagram socket sends nothing.
        socket.connect((remote, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    // Addresses reserved for documentation (RFC 5737, RFC 3849).
    let ipv4 = || outward(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let ipv6 =
        || outward(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    let route = |endpoint: &Endpoint| match endpoint.address() {
        Some(IpAddr::V6(_)) => ipv4().or_else(|_| ipv6()),
        _ => ipv4(),
    };
    let endpoints = listen.iter().map(|endpoint| match route(endpoint) {
        Ok(address) if endpoint.is_unspecified() => {
            let endpoint = endpoint.with_address(address);
            tracing::info!(%endpoint, "replicas offered at a detected address; transport.advertise overrides it");
            endpoint
        }
        _ => endpoint.clone(),
    });
    endpoints.collect()
}
