//! Enjambre's transports over guarded TCP streams: `zmq://HOST:PORT` speaks ZeroMQ, `tcp://HOST:PORT` plain frames; `zmqs://`
//! and `tcps://` are the same inside of TLS 1.3, both sides authenticated by their keys.
//!
//! Every public socket belongs to the guarded stream layer (`guard`), which bounds what a remote can do. The `zeromq`
//! crate speaks ZMTP on private Unix sockets only. What goes over the wire is described in `docs/PROTOCOL.md`.

mod connection;
#[cfg(test)]
mod fuzz;
mod guard;
mod listener;
pub mod open_files;
mod remote;
pub mod settings;
mod tcp;
mod wire;
mod zmq;

use std::sync::Arc;

use enjambre_core::model::identity::KeyPair;
use enjambre_core::transport::Transport;

use guard::Guard;
use guard::secure::Security;
use settings::{InvalidSetting, TransportSettings};
use wire::StreamTransport;

/// A transport that tells how much it is used, together with those that it shares its limits with.
pub trait GuardedTransport: Transport {
    /// How many connections are accepted at the moment.
    fn connections(&self) -> usize;

    /// How many bytes of replies are reserved or wait to be sent at the moment.
    fn queued_reply_bytes(&self) -> usize;
}

/// What the transports of a process share, so that its limits hold for all of them together.
#[derive(Debug, Clone)]
pub struct Shared {
    guard: Arc<Guard>,
}

impl Shared {
    /// Fails where the settings make no sense.
    pub fn new(settings: TransportSettings) -> Result<Self, InvalidSetting> {
        Ok(Self { guard: Arc::new(Guard::new(settings)?) })
    }

    /// The transport with the scheme `zmq`.
    pub fn zmq(&self) -> Arc<dyn GuardedTransport> {
        Arc::new(StreamTransport::<zmq::Zmq>::new(Arc::clone(&self.guard), None))
    }

    /// The transport with the scheme `tcp`.
    pub fn tcp(&self) -> Arc<dyn GuardedTransport> {
        Arc::new(StreamTransport::<tcp::Tcp>::new(Arc::clone(&self.guard), None))
    }

    /// The transports with the schemes `tcps` and `zmqs`, for the node that has this key.
    pub fn secure(&self, key: &KeyPair) -> [Arc<dyn GuardedTransport>; 2] {
        let security = Security::new(key);
        let tcp = StreamTransport::<tcp::Tcp>::new(Arc::clone(&self.guard), Some(security.clone()));
        [Arc::new(tcp), Arc::new(StreamTransport::<zmq::Zmq>::new(Arc::clone(&self.guard), Some(security)))]
    }
}

/// The transport with the scheme `zmq`, alone. Fails where the settings make no sense.
pub fn zmq(settings: TransportSettings) -> Result<Arc<dyn GuardedTransport>, InvalidSetting> {
    Ok(Shared::new(settings)?.zmq())
}

/// The transport with the scheme `tcp`, alone. Fails where the settings make no sense.
pub fn tcp(settings: TransportSettings) -> Result<Arc<dyn GuardedTransport>, InvalidSetting> {
    Ok(Shared::new(settings)?.tcp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn the_limits_hold_for_both_transports_together() {
        let settings = TransportSettings { connections: 1, ..TransportSettings::default() };
        let shared = Shared::new(settings).unwrap();
        let (tcp, zmq) = (shared.tcp(), shared.zmq());
        let plain = tcp.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let zmtp = zmq.bind(&"zmq://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut admitted = TcpStream::connect(("127.0.0.1", plain.local_endpoint().port())).await.unwrap();
        admitted.read_u8().await.expect("a greeting");
        let mut refused = TcpStream::connect(("127.0.0.1", zmtp.local_endpoint().port())).await.unwrap();
        assert!(refused.read_u8().await.is_err(), "closed before any greeting");
        assert_eq!((tcp.connections(), zmq.connections()), (1, 1));
    }
}
