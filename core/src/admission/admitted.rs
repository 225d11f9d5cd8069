//! The connections whose remote was let in, in bounded memory.
//!
//! There is no telling when a connection is gone, so the oldest are forgotten when there are too many: who is still there
//! introduces itself again.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use crate::model::id::PeerId;
use crate::swarm::membership::Rights;
use crate::transport::ConnectionId;

/// How many connections are remembered.
const MAX_REMEMBERED: usize = 4096;

/// Somebody that was let in.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Who it is.
    pub peer: PeerId,
    /// What it may do.
    pub rights: Rights,
    /// Until when that holds, in milliseconds since 1970-01-01 UTC.
    pub until: u64,
    /// Cancelled when the peer is thrown out: ends what is under way for it.
    pub thrown_out: CancellationToken,
}

/// Who is behind which connection.
#[derive(Debug, Default)]
pub struct Admitted {
    guests: BTreeMap<ConnectionId, Guest>,
}

impl Admitted {
    /// Who is behind the connection, where that still holds.
    pub fn get(&self, connection: ConnectionId, now: u64) -> Option<Guest> {
        self.guests.get(&connection).filter(|guest| now < guest.until).cloned()
    }

    /// Lets somebody in over a connection until this time.
    pub fn admit(&mut self, connection: ConnectionId, peer: PeerId, rights: Rights, until: u64) -> Guest {
        let thrown_out = match self.guests.get(&connection) {
            // What is under way for it goes on.
            Some(guest) if guest.peer == peer => guest.thrown_out.clone(),
            _ => CancellationToken::new(),
        };
        let guest = Guest { peer, rights, until, thrown_out };
        if self.guests.len() >= MAX_REMEMBERED && !self.guests.contains_key(&connection) {
            self.guests.pop_first();
        }
        self.guests.insert(connection, guest.clone());
        guest
    }

    /// Throws out those of whom this holds.
    pub fn throw_out(&mut self, gone: impl Fn(&PeerId) -> bool) {
        self.guests.retain(|_, guest| {
            let stays = !gone(&guest.peer);
            if !stays {
                guest.thrown_out.cancel();
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId::from_bytes([1; 32]);
    const OTHER: PeerId = PeerId::from_bytes([2; 32]);

    #[test]
    fn a_guest_is_known_until_its_time_is_over_or_it_is_thrown_out() {
        let mut admitted = Admitted::default();
        let first = admitted.admit(ConnectionId(1), PEER, Rights::Full, 10);
        let other = admitted.admit(ConnectionId(2), OTHER, Rights::ReadOnly, 10);
        assert_eq!(admitted.get(ConnectionId(1), 9).unwrap().peer, PEER);
        assert!(admitted.get(ConnectionId(1), 10).is_none());
        admitted.admit(ConnectionId(1), PEER, Rights::Full, 20);
        assert!(admitted.get(ConnectionId(1), 10).is_some());
        admitted.throw_out(|peer| *peer == PEER);
        assert!(first.thrown_out.is_cancelled(), "also what began before it was let in again");
        assert!(admitted.get(ConnectionId(1), 9).is_none() && !other.thrown_out.is_cancelled());
        assert_eq!(admitted.get(ConnectionId(2), 9).unwrap().rights, Rights::ReadOnly);
    }

    #[test]
    fn of_too_many_the_oldest_are_forgotten_and_not_thrown_out() {
        let mut admitted = Admitted::default();
        let first = admitted.admit(ConnectionId(0), PEER, Rights::Full, 10);
        for n in 1..=MAX_REMEMBERED as u64 {
            admitted.admit(ConnectionId(n), PEER, Rights::Full, 10);
        }
        assert_eq!(admitted.guests.len(), MAX_REMEMBERED);
        assert!(admitted.get(ConnectionId(0), 0).is_none() && !first.thrown_out.is_cancelled());
    }
}
