//! A transport over Unix domain sockets, for nodes on one machine: `pipe://NAME:PORT`.
//!
//! Each endpoint is a socket in one directory. The permissions of the directory are the only access control.

mod connection;
mod frame;
mod listener;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use enjambre_core::transport::{check_bind, check_connect};
use enjambre_core::{Connection, Endpoint, Listener, MessageLimits, Transport, TransportError};

/// The transport of the scheme `pipe`. Nodes with the same directory can reach each other.
#[derive(Debug)]
pub struct Pipe {
    directory: PathBuf,
    limits: MessageLimits,
}

impl Pipe {
    /// Creates a transport with its sockets in `directory`.
    pub fn new(directory: impl Into<PathBuf>, limits: MessageLimits) -> Self {
        Self { directory: directory.into(), limits }
    }

    fn socket_path(&self, endpoint: &Endpoint) -> PathBuf {
        self.directory.join(format!("{}-{}", endpoint.host(), endpoint.port()))
    }
}

#[async_trait]
impl Transport for Pipe {
    fn scheme(&self) -> &'static str {
        "pipe"
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        check_connect(self, endpoint)?;
        let path = self.socket_path(endpoint);
        Ok(Arc::new(connection::PipeConnection::new(endpoint.clone(), path, self.limits)))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        check_bind(self, endpoint)?;
        let failed =
            |error: std::io::Error| TransportError::Bind { endpoint: endpoint.clone(), source: error.into() };
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        // Port 0 selects the first free port.
        let ports = match endpoint.port() {
            0 => 49_152..=u16::MAX,
            port => port..=port,
        };
        let mut in_use = std::io::ErrorKind::AddrInUse.into();
        for port in ports {
            let endpoint = endpoint.with_port(port);
            match listener::Socket::bind(self.socket_path(&endpoint)) {
                Ok(socket) => {
                    return Ok(Arc::new(listener::PipeListener::start(endpoint, socket, self.limits)));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => in_use = error,
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(in_use))
    }
}
