//! The interface between the generic stream transport and a wire format.
//!
//! A wire format ([`Wire`]) defines how messages are encoded on a stream. Connecting and reconnecting
//! ([`crate::connection`]), accepting ([`crate::listener`]) and answering ([`crate::remote`]) are the same for all formats.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::transport::calls::Calls;
use enjambre_core::transport::metrics::TransportMetrics;
use enjambre_core::{Activity, ConnectionHandle, ConnectionId, Endpoint, Incoming, PeerInfo};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guard::Guard;
use crate::guard::disconnect::Disconnect;
use crate::guard::secure::{self, Security};
use crate::guard::stream::Stream;

/// Maximum number of consecutive replies without a call. More close the connection.
pub(crate) const MAX_UNMATCHED: u64 = 1024;

/// A wire format. The value is shared by all connections of a transport.
pub(crate) trait Wire: Debug + Default + Send + Sync + 'static {
    /// The scheme of endpoints without encryption.
    const PLAIN: &'static str;
    /// The scheme of endpoints with encryption.
    const SECURE: &'static str;
    /// An established connection of the requesting side.
    type Link: Link;

    /// Performs the handshake and starts the transfer of messages. The caller limits the time.
    fn establish(&self, dialled: Dialled)
    -> impl Future<Output = Result<Arc<Self::Link>, Disconnect>> + Send;

    /// Serves an accepted connection from the handshake to its end.
    fn serve(
        server: &Server<Self>,
        accepted: Accepted,
    ) -> impl Future<Output = Result<(), Disconnect>> + Send;
}

/// An established connection of the requesting side. Discarded when it ends.
pub(crate) trait Link: Debug + Send + Sync + 'static {
    /// The outstanding calls.
    fn calls(&self) -> &Arc<Calls>;

    /// Returns whether the link is usable.
    fn is_up(&self) -> bool;

    /// Sends a request. A failure ends the link, and thereby the call.
    fn send(&self, header: Bytes) -> impl Future<Output = ()> + Send;
}

/// The parts that the listeners and connections of a transport share.
#[derive(Debug)]
pub(crate) struct Parts<W> {
    pub(crate) guard: Arc<Guard>,
    pub(crate) wire: W,
    /// `None` without encryption.
    pub(crate) security: Option<Security>,
    pub(crate) metrics: Arc<TransportMetrics>,
}

/// A new stream of the requesting side, before the handshake.
pub(crate) struct Dialled {
    pub(crate) guard: Arc<Guard>,
    pub(crate) metrics: Arc<TransportMetrics>,
    pub(crate) stream: Stream,
    pub(crate) endpoint: Endpoint,
    /// Updated for each received byte.
    pub(crate) activity: Activity,
    /// Ends the link.
    pub(crate) kill: CancellationToken,
}

/// A new stream of the answering side, before the handshake.
pub(crate) struct Accepted {
    pub(crate) stream: Stream,
    pub(crate) address: SocketAddr,
    /// The deadline of the handshake.
    pub(crate) deadline: Instant,
    /// Closes the connection on behalf of the service.
    pub(crate) handle: ConnectionHandle,
}

impl Accepted {
    /// The connection as services see it.
    pub(crate) fn info(&self, connection: ConnectionId) -> PeerInfo {
        PeerInfo {
            connection,
            handle: self.handle.clone(),
            address: Some(self.address.ip().to_canonical()),
            identity: secure::identity(&self.stream),
        }
    }
}

/// The part of a listener that its connections share.
pub(crate) struct Server<W> {
    pub(crate) parts: Arc<Parts<W>>,
    pub(crate) inbox: Inbox,
    /// Refuses new connections and requests. Queued replies are still sent.
    pub(crate) stop: CancellationToken,
    /// Ends all connections immediately.
    pub(crate) kill: CancellationToken,
}

/// The queue of accepted requests, and the tasks that the shutdown of a listener waits for.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    pub(crate) requests: mpsc::UnboundedSender<Incoming>,
    pub(crate) tasks: TaskTracker,
}
