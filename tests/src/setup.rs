//! Configurations to test: storage backend, content location and transports.

use std::str::FromStr;

/// The transports between the nodes of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// The default configuration: trackers over ZeroMQ, peers over ZeroMQ and TCP.
    Default,
    /// All nodes over ZeroMQ.
    Zmq,
    /// All nodes over plain TCP.
    Tcp,
    /// Encrypted and authenticated: trackers over ZeroMQ, peers over ZeroMQ and TCP.
    Secure,
}

impl Wire {
    /// Returns the schemes of the endpoints at which nodes of a kind listen.
    pub(crate) fn schemes(self, kind: &str) -> &'static [&'static str] {
        match (self, kind) {
            (Self::Zmq, _) | (Self::Default, "tracker") => &["zmq"],
            (Self::Tcp, _) => &["tcp"],
            (Self::Secure, "tracker") => &["zmqs"],
            (Self::Secure, _) => &["tcps", "zmqs"],
            (Self::Default, _) => &["tcp", "zmq"],
        }
    }
}

/// The storage backend, content location and transports of the nodes of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The storage backend of trackers and peers.
    pub backend: &'static str,
    /// The content location of peers: `database` or `files`.
    pub content: &'static str,
    /// The transports between the nodes.
    pub wire: Wire,
}

impl Default for Setup {
    fn default() -> Self {
        Self { backend: "sqlite", content: "database", wire: Wire::Default }
    }
}

impl FromStr for Setup {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (backend, content) = match name {
            "sqlite" => ("sqlite", "database"),
            "sqlite+files" => ("sqlite", "files"),
            "sled" => ("sled", "database"),
            "sled+files" => ("sled", "files"),
            _ => {
                return Err(format!("unknown setup {name:?}; use sqlite, sqlite+files, sled or sled+files"));
            }
        };
        Ok(Self { backend, content, ..Self::default() })
    }
}
