//! The remote side of an accepted connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio_util::sync::CancellationToken;

use crate::model::id::PeerId;
use crate::runtime;

/// Identifies an accepted connection. Unique within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl ConnectionId {
    /// Returns a new id.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(runtime::count(&NEXT))
    }
}

/// Closes an accepted connection or waits for its end. Clones refer to the same connection. The default value belongs to no
/// connection.
#[derive(Debug, Clone, Default)]
pub struct ConnectionHandle(Arc<CancellationToken>);

impl ConnectionHandle {
    /// Creates a handle for a transport. The token is cancelled when the connection ends, and cancelling it ends the
    /// connection.
    pub fn new(end: CancellationToken) -> Self {
        Self(Arc::new(end))
    }

    /// Closes the connection immediately, in the middle of a reply if one is being sent. The calls of the requester fail
    /// with [`TransportError::Lost`](super::error::TransportError::Lost). The remote can connect again.
    pub fn close(&self) {
        self.0.cancel();
    }

    /// Returns whether the connection has ended, on either side.
    pub fn is_closed(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) {
        self.0.cancelled().await;
    }
}

/// The sender of a request.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The connection over which the request arrived.
    pub connection: ConnectionId,
    /// Closes that connection.
    pub handle: ConnectionHandle,
    /// The remote address; `None` within the process.
    pub address: Option<IpAddr>,
    /// The identity of the remote, if the transport authenticates.
    pub identity: Option<PeerId>,
}
