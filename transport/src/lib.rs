//! Enjambre's transports over guarded TCP streams: `zmq://HOST:PORT` speaks ZeroMQ, `tcp://HOST:PORT` plain frames.
//!
//! Every public socket belongs to the guarded stream layer (`guard`), which bounds what a remote can do. The `zeromq`
//! crate speaks ZMTP on private Unix sockets only. What goes over the wire is described in `docs/PROTOCOL.md`.

mod connection;
mod guard;
mod listener;
pub mod open_files;
mod remote;
pub mod settings;
mod tcp;
mod wire;
mod zmq;

use std::sync::Arc;

use enjambre_core::transport::Transport;

use settings::{InvalidSetting, TransportSettings};
use wire::StreamTransport;

/// A transport that tells how much it is used.
pub trait GuardedTransport: Transport {
    /// How many connections are accepted at the moment.
    fn connections(&self) -> usize;

    /// How many bytes of replies are reserved or wait to be sent at the moment.
    fn queued_reply_bytes(&self) -> usize;
}

/// The transport with the scheme `zmq`. Fails where the settings make no sense.
pub fn zmq(settings: TransportSettings) -> Result<Arc<dyn GuardedTransport>, InvalidSetting> {
    Ok(Arc::new(StreamTransport::<zmq::Zmq>::new(settings)?))
}

/// The transport with the scheme `tcp`. Fails where the settings make no sense.
pub fn tcp(settings: TransportSettings) -> Result<Arc<dyn GuardedTransport>, InvalidSetting> {
    Ok(Arc::new(StreamTransport::<tcp::Tcp>::new(settings)?))
}
