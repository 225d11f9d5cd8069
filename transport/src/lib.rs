//! Enjambre's transport over ZeroMQ: `zmq://HOST:PORT`.
//!
//! The `zeromq` crate speaks ZMTP on private Unix sockets only; every public socket belongs to the guarded stream
//! layer (`guard`), which bounds what a remote can do. What goes over the wire is described in `docs/PROTOCOL.md`.

mod guard;
pub mod open_files;
pub mod settings;
pub mod zmq;

use std::sync::Arc;

use enjambre_core::transport::Transport;

use settings::{InvalidSetting, TransportSettings};

/// The transport with the scheme `zmq`. Fails where the settings make no sense.
pub fn zmq(settings: TransportSettings) -> Result<Arc<dyn Transport>, InvalidSetting> {
    Ok(Arc::new(zmq::ZmqTransport::new(settings)?))
}
