//! Enjambre's transports over TCP: `zmq://HOST:PORT` for ZeroMQ, `tcp://HOST:PORT` for length-prefixed frames, and `zmqs://`
//! and `tcps://` for the same inside TLS 1.3, with both sides authenticated by their keys.
//!
//! The guarded stream layer (`guard`) owns all public sockets and enforces the limits on remotes. The `zeromq` crate only
//! uses private Unix sockets behind it. `docs/PROTOCOL.md` specifies the wire formats.

mod connection;
#[cfg(test)]
mod fuzz;
mod guard;
mod listener;
pub mod open_files;
mod remote;
#[cfg(test)]
mod scripted_remote;
pub mod settings;
mod stream_transport;
mod tcp;
mod wire;
mod zmq;

use std::sync::Arc;

use enjambre_core::KeyPair;

use guard::Guard;
use guard::secure::Security;
use settings::{InvalidSetting, TransportSettings};
use stream_transport::StreamTransport;

pub use stream_transport::GuardedTransport;

/// The limits that the transports of a process share.
#[derive(Debug, Clone)]
pub struct Shared {
    guard: Arc<Guard>,
}

impl Shared {
    /// Validates the settings.
    pub fn new(settings: TransportSettings) -> Result<Self, InvalidSetting> {
        Ok(Self { guard: Arc::new(Guard::new(settings)?) })
    }

    /// Returns a transport with the scheme `zmq`.
    pub fn zmq(&self) -> Arc<dyn GuardedTransport> {
        Arc::new(StreamTransport::<zmq::Zmq>::new(Arc::clone(&self.guard), None))
    }

    /// Returns a transport with the scheme `tcp`.
    pub fn tcp(&self) -> Arc<dyn GuardedTransport> {
        Arc::new(StreamTransport::<tcp::Tcp>::new(Arc::clone(&self.guard), None))
    }

    /// Returns transports with the schemes `tcps` and `zmqs` for the node with this key.
    pub fn secure(&self, key: &KeyPair) -> [Arc<dyn GuardedTransport>; 2] {
        let security = Security::new(key);
        let tcp = StreamTransport::<tcp::Tcp>::new(Arc::clone(&self.guard), Some(security.clone()));
        [Arc::new(tcp), Arc::new(StreamTransport::<zmq::Zmq>::new(Arc::clone(&self.guard), Some(security)))]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn unspecified_ipv6_address_serves_both_families() {
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            return;
        }
        let transport = Shared::new(TransportSettings::default()).unwrap().tcp();
        let listener = transport.bind(&"tcp://[::]:0".parse().unwrap()).await.unwrap();
        for address in ["127.0.0.1", "::1"] {
            let stream = TcpStream::connect((address, listener.local_endpoint().port())).await;
            stream.unwrap().read_u8().await.expect("a greeting");
        }
    }

    /// The test blocks the only thread, so that the listener accepts nothing. Beyond the backlog, a connection is never
    /// established.
    #[tokio::test]
    async fn burst_of_connections_waits_for_no_retry() {
        let largest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
        let burst = largest.and_then(|text| text.trim().parse().ok()).unwrap_or(128).min(400);
        let transport = Shared::new(TransportSettings::default()).unwrap().tcp();
        let listener = transport.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = ([127, 0, 0, 1], listener.local_endpoint().port()).into();
        let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
        let connected: Vec<_> = (0..burst).map(connect).collect();
        assert_eq!(connected.len(), burst);
    }

    #[tokio::test]
    async fn limits_apply_to_all_transports_together() {
        let settings = TransportSettings { connections: 1, ..TransportSettings::default() };
        let shared = Shared::new(settings).unwrap();
        let (tcp, zmq) = (shared.tcp(), shared.zmq());
        let plain = tcp.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let zmtp = zmq.bind(&"zmq://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut admitted = TcpStream::connect(("127.0.0.1", plain.local_endpoint().port())).await.unwrap();
        admitted.read_u8().await.expect("a greeting");
        let mut refused = TcpStream::connect(("127.0.0.1", zmtp.local_endpoint().port())).await.unwrap();
        assert!(refused.read_u8().await.is_err(), "closed before the greeting");
        assert_eq!((tcp.connections(), zmq.connections()), (1, 1));
    }
}
