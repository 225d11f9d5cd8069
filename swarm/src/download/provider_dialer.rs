//! Connections to providers.
//!
//! Unknown peers choose the endpoints. A downloader must not become a means to reach other services: it connects to no
//! address that denotes this host or link, and limits the rate of new connections to each host. Addresses in the endpoints
//! themselves were checked by [`TrackerClient::providers`](crate::tracker_client::client::TrackerClient::providers).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::rate_limit::gcra::RateLimit;
use crate::rate_limit::per_address::AddressRateLimit;
use enjambre_core::{Connection, Dialer, Endpoint, PeerId, TransportError, UnixMillis};

/// The limit of new connections per address: a burst, and the time until one more is allowed. Many peers may share an address.
const NEW_CONNECTIONS: RateLimit = RateLimit { burst: 32, interval: Duration::from_millis(500) };

/// A [`Dialer`] for endpoints of providers.
#[derive(Debug)]
pub(super) struct ProviderDialer {
    dialer: Arc<Dialer>,
    new_connections: AddressRateLimit,
    start: Instant,
}

impl ProviderDialer {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer, new_connections: AddressRateLimit::new(NEW_CONNECTIONS), start: Instant::now() }
    }

    /// [`Dialer::preferred`]
    pub(super) fn preferred(&self, id: PeerId, endpoints: &[Endpoint]) -> Vec<Endpoint> {
        self.dialer.preferred(id, endpoints)
    }

    /// Returns the endpoint once for each usable address of its host; at least one.
    pub(super) async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
        let mut found = self.dialer.resolve(endpoint).await?;
        if endpoint.address().is_none() {
            let is_local = endpoint.is_loopback();
            found.retain(|found| found.is_routable() || (is_local && found.is_loopback()));
        }
        if found.is_empty() {
            let problem = "the host has no address that belongs to another host".to_owned();
            return Err(TransportError::InvalidEndpoint { endpoint: endpoint.clone(), problem });
        }
        Ok(found)
    }

    /// Returns the connection to a resolved endpoint.
    pub(super) async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        if let Some(existing) = self.dialer.existing(endpoint) {
            return Ok(existing);
        }
        let address = endpoint.address().filter(|address| !address.is_loopback());
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if address.is_some() && self.new_connections.take(address, UnixMillis(elapsed)).is_err() {
            let source = "too many new connections to this host".into();
            return Err(TransportError::Unreachable { endpoint: endpoint.clone(), source });
        }
        self.dialer.connect(endpoint).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use enjambre_core::Transport;
    use enjambre_core::transport::memory::MemoryNetwork;
    use enjambre_testkit::transport::intercept::{Interceptor, intercepted};

    /// Resolves every name to these addresses.
    #[derive(Debug)]
    struct Resolver(Vec<&'static str>);

    #[async_trait]
    impl Interceptor for Resolver {
        async fn resolve(
            &self,
            _: &dyn Transport,
            endpoint: &Endpoint,
        ) -> Result<Vec<Endpoint>, TransportError> {
            let with_address = |text: &&str| endpoint.with_address(text.parse().unwrap());
            let found: Vec<_> = self.0.iter().map(with_address).collect();
            Ok(if endpoint.address().is_some() { vec![endpoint.clone()] } else { found })
        }
    }

    fn dialer(addresses: &[&'static str]) -> ProviderDialer {
        let transport = intercepted(MemoryNetwork::new().transport(), Resolver(addresses.to_vec()));
        ProviderDialer::new(Arc::new(Dialer::new(vec![transport])))
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn name_is_checked_after_its_resolution() {
        let dialer = dialer(&["127.0.0.1", "169.254.169.254", "::1", "0.0.0.0", "10.0.0.7", "fe80::1"]);
        let found = dialer.resolve(&endpoint("memory://peer.example.org:1")).await.unwrap();
        assert_eq!(found, [endpoint("memory://10.0.0.7:1")]);
        let found = dialer.resolve(&endpoint("memory://localhost:1")).await.unwrap();
        assert_eq!(found.len(), 3, "loopback and another host: {found:?}");
        let local = self::dialer(&["127.0.0.1"]).resolve(&endpoint("memory://peer.example.org:1")).await;
        assert!(matches!(local, Err(TransportError::InvalidEndpoint { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_are_limited_per_host() {
        let dialer = dialer(&[]);
        let mut open = Vec::new();
        for port in 1..=NEW_CONNECTIONS.burst {
            open.push(dialer.connect(&endpoint(&format!("memory://10.0.0.7:{port}"))).await.unwrap());
        }
        let next = endpoint("memory://10.0.0.7:1000");
        assert!(matches!(dialer.connect(&next).await, Err(TransportError::Unreachable { .. })));
        dialer.connect(&endpoint("memory://10.0.0.7:1")).await.expect("an existing connection");
        for port in 1..100 {
            dialer.connect(&endpoint(&format!("memory://10.0.1.{port}:1"))).await.expect("another host");
            dialer.connect(&endpoint(&format!("memory://127.0.0.1:{port}"))).await.expect("this host");
        }
        tokio::time::advance(NEW_CONNECTIONS.interval).await;
        dialer.connect(&next).await.expect("one more after the interval");
    }
}
