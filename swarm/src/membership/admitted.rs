//! The peers that were admitted, by connection.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::per_connection::PerConnection;
use super::refusal::Refusal;
use enjambre_core::model::membership::Rights;
use enjambre_core::protocol::error::ErrorReply;
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{ConnectionId, PeerId, PeerInfo, ReplySink, RequestId, UnixMillis};

/// A member that was admitted on a connection.
#[derive(Debug)]
pub struct AdmittedPeer {
    /// The id of the peer.
    pub id: PeerId,
    /// Its rights.
    pub rights: Rights,
    /// The end of its admission.
    until: UnixMillis,
    /// Cancelled when the peer is revoked.
    revoked: CancellationToken,
}

impl AdmittedPeer {
    /// Serves a request of the peer. Aborts it when the peer is revoked.
    pub async fn serve(
        &self,
        handler: &dyn Handler,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let reply = self.revoked.run_until_cancelled(handler.handle(id, request, peer, sink)).await;
        reply.unwrap_or_else(|| Err(Refusal::Revoked.into()))
    }
}

/// The admitted peers.
#[derive(Debug, Default)]
pub struct AdmittedPeers {
    by_connection: Mutex<PerConnection<Arc<AdmittedPeer>>>,
}

impl AdmittedPeers {
    /// Returns the peer that was admitted on the connection, unless the admission has expired.
    pub fn get(&self, connection: ConnectionId, now: UnixMillis) -> Option<Arc<AdmittedPeer>> {
        self.by_connection.lock().get(connection).filter(|peer| now < peer.until).cloned()
    }

    /// Admits the peer `id` on the connection of `peer` until the time `until`. Its running requests continue.
    ///
    /// The revocation is checked under the lock. So a concurrent revocation is either seen here, or
    /// [`revoke`](Self::revoke) sees the admission.
    ///
    /// # Errors
    /// [`Refusal::Revoked`].
    pub fn admit(
        &self,
        peer: &PeerInfo,
        id: PeerId,
        rights: Rights,
        until: UnixMillis,
        is_revoked: impl Fn(&PeerId) -> bool,
    ) -> Result<Arc<AdmittedPeer>, Refusal> {
        let mut by_connection = self.by_connection.lock();
        if is_revoked(&id) {
            return Err(Refusal::Revoked);
        }
        let revoked = match by_connection.get(peer.connection) {
            Some(known) if known.id == id => known.revoked.clone(),
            _ => CancellationToken::new(),
        };
        let admitted = Arc::new(AdmittedPeer { id, rights, until, revoked });
        by_connection.insert(peer, Arc::clone(&admitted));
        Ok(admitted)
    }

    /// Aborts the requests of revoked peers and closes their connections. Returns the number of closed connections.
    pub fn revoke(&self, is_revoked: impl Fn(&PeerId) -> bool) -> usize {
        let mut closed = 0;
        self.by_connection.lock().retain(|connection, peer| {
            let keep = !is_revoked(&peer.id);
            if !keep {
                closed += usize::from(!connection.is_closed());
                peer.revoked.cancel();
                connection.close();
            }
            keep
        });
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::ConnectionHandle;

    const PEER: PeerId = PeerId::from_bytes([1; 32]);
    const OTHER: PeerId = PeerId::from_bytes([2; 32]);

    fn peer_info(connection: u64) -> PeerInfo {
        let (connection, handle) = (ConnectionId(connection), ConnectionHandle::default());
        PeerInfo { connection, handle, address: None, identity: None }
    }

    #[test]
    fn admission_ends_with_expiry_or_revocation() {
        let peers = AdmittedPeers::default();
        let (one, two) = (peer_info(1), peer_info(2));
        let admit = |peer: &PeerInfo, id, rights, until| {
            peers.admit(peer, id, rights, UnixMillis(until), |_| false).unwrap()
        };
        let first = admit(&one, PEER, Rights::Full, 10);
        let other = admit(&two, OTHER, Rights::ReadOnly, 10);
        assert_eq!(peers.get(ConnectionId(1), UnixMillis(9)).unwrap().id, PEER);
        assert!(peers.get(ConnectionId(1), UnixMillis(10)).is_none());
        admit(&one, PEER, Rights::Full, 20);
        assert!(peers.get(ConnectionId(1), UnixMillis(10)).is_some());
        assert_eq!(peers.revoke(|peer| *peer == PEER), 1);
        assert!(first.revoked.is_cancelled(), "requests from before the second admission are aborted too");
        assert!(one.handle.is_closed() && !two.handle.is_closed());
        assert!(peers.get(ConnectionId(1), UnixMillis(9)).is_none() && !other.revoked.is_cancelled());
        assert_eq!(peers.get(ConnectionId(2), UnixMillis(9)).unwrap().rights, Rights::ReadOnly);
        assert_eq!(peers.revoke(|peer| *peer == PEER), 0, "nothing is left to close");
        assert_eq!(
            peers.admit(&one, PEER, Rights::Full, UnixMillis(20), |_| true).err(),
            Some(Refusal::Revoked)
        );
    }
}
