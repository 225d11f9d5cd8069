//! The connections whose remote was let in.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::by_connection::ByConnection;
use super::refusal::Refusal;
use crate::model::id::PeerId;
use crate::protocol::error::ErrorReply;
use crate::protocol::message::{Reply, Request};
use crate::protocol::server::Handler;
use crate::swarm::membership::Rights;
use crate::transport::envelope::RequestId;
use crate::transport::{ConnectionId, PeerInfo, ReplySink};

/// Somebody that was let in over a connection.
#[derive(Debug)]
pub struct Guest {
    /// Who it is.
    pub peer: PeerId,
    /// What it may do.
    pub rights: Rights,
    /// Until when that holds, in milliseconds since 1970-01-01 UTC.
    until: u64,
    /// Cancelled when the peer is thrown out.
    thrown_out: CancellationToken,
}

impl Guest {
    /// What it is answered. Ends when it is thrown out, whatever is under way for it.
    pub async fn attend(
        &self,
        handler: &dyn Handler,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let answer = self.thrown_out.run_until_cancelled(handler.handle(id, request, peer, sink)).await;
        answer.unwrap_or_else(|| Err(Refusal::ThrownOut.into()))
    }
}

/// Who is behind which connection.
#[derive(Debug, Default)]
pub struct Admitted {
    guests: ByConnection<Arc<Guest>>,
}

impl Admitted {
    /// Who is behind the connection, where that still holds.
    pub fn get(&self, connection: ConnectionId, now: u64) -> Option<Arc<Guest>> {
        self.guests.get(connection).filter(|guest| now < guest.until).cloned()
    }

    /// Lets somebody in over a connection until this time.
    pub fn admit(&mut self, over: &PeerInfo, peer: PeerId, rights: Rights, until: u64) -> Arc<Guest> {
        let thrown_out = match self.guests.get(over.connection) {
            // What is under way for it goes on.
            Some(guest) if guest.peer == peer => guest.thrown_out.clone(),
            _ => CancellationToken::new(),
        };
        let guest = Arc::new(Guest { peer, rights, until, thrown_out });
        self.guests.insert(over, Arc::clone(&guest));
        guest
    }

    /// Throws out those of whom this holds: what is under way for them ends, and so do their connections. How many connections
    /// there were.
    pub fn throw_out(&mut self, gone: impl Fn(&PeerId) -> bool) -> usize {
        let mut closed = 0;
        self.guests.retain(|connection, guest| {
            let stays = !gone(&guest.peer);
            if !stays {
                closed += usize::from(!connection.is_closed());
                guest.thrown_out.cancel();
                connection.close();
            }
            stays
        });
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::ConnectionHandle;

    const PEER: PeerId = PeerId::from_bytes([1; 32]);
    const OTHER: PeerId = PeerId::from_bytes([2; 32]);

    fn over(connection: u64) -> PeerInfo {
        let (connection, handle) = (ConnectionId(connection), ConnectionHandle::default());
        PeerInfo { connection, handle, address: None, identity: None }
    }

    #[test]
    fn a_guest_is_known_until_its_time_is_over_or_it_is_thrown_out() {
        let mut admitted = Admitted::default();
        let (one, two) = (over(1), over(2));
        let first = admitted.admit(&one, PEER, Rights::Full, 10);
        let other = admitted.admit(&two, OTHER, Rights::ReadOnly, 10);
        assert_eq!(admitted.get(ConnectionId(1), 9).unwrap().peer, PEER);
        assert!(admitted.get(ConnectionId(1), 10).is_none());
        admitted.admit(&one, PEER, Rights::Full, 20);
        assert!(admitted.get(ConnectionId(1), 10).is_some());
        assert_eq!(admitted.throw_out(|peer| *peer == PEER), 1);
        assert!(first.thrown_out.is_cancelled(), "also what began before it was let in again");
        assert!(one.handle.is_closed() && !two.handle.is_closed());
        assert!(admitted.get(ConnectionId(1), 9).is_none() && !other.thrown_out.is_cancelled());
        assert_eq!(admitted.get(ConnectionId(2), 9).unwrap().rights, Rights::ReadOnly);
        assert_eq!(admitted.throw_out(|peer| *peer == PEER), 0, "it is gone already");
    }
}
