//! Checks memberships that others show, each once: what was checked is remembered, in bounded memory.
//!
//! A signature takes about as long to check as a small request takes to answer, much less than the handshake in front of it.
//! So it is checked where it comes in, with no lock held, and a connection may have only so many checked.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::by_connection::ByConnection;
use super::refusal::Refusal;
use crate::cell_rate::CellRate;
use crate::model::id::PeerId;
use crate::model::identity::PublicKey;
use crate::swarm::membership::{Invalid, Membership, SignedMembership};
use crate::transport::PeerInfo;

/// How many signatures are checked for a connection.
const CHECKS: CellRate = CellRate { burst: 3, interval: 60_000 };
/// Of how many peers the membership is remembered.
const MAX_REMEMBERED: usize = 4096;

/// Checks what this authority is said to have signed.
#[derive(Debug)]
pub struct Checks {
    authority: PublicKey,
    good: Mutex<HashMap<PeerId, (SignedMembership, Membership)>>,
    /// When each connection may have all its checks again.
    full_at: Mutex<ByConnection<u64>>,
}

impl Checks {
    /// Of memberships of this authority.
    pub fn new(authority: PublicKey) -> Self {
        Self { authority, good: Mutex::default(), full_at: Mutex::default() }
    }

    /// Who signs them.
    pub const fn authority(&self) -> &PublicKey {
        &self.authority
    }

    /// What `shown` says, if it is good for this peer at the time `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self, shown: &SignedMembership, remote: PeerId, now: u64) -> Result<Membership, Invalid> {
        if let Some(known) = self.known(shown, remote) {
            return known.check_time(now).map(|()| known);
        }
        if shown.claim()?.peer != remote {
            return Err(Invalid::OtherPeer);
        }
        let membership = shown.verify(&self.authority, now)?;
        let mut good = self.good.lock();
        if good.len() >= MAX_REMEMBERED && !good.contains_key(&remote) {
            // Who is still there is checked once more.
            good.clear();
        }
        good.insert(remote, (*shown, membership));
        Ok(membership)
    }

    /// The same of what somebody shows without being asked: not as often as it likes.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn check_over(
        &self,
        over: &PeerInfo,
        shown: &SignedMembership,
        remote: PeerId,
        now: u64,
    ) -> Result<Membership, Refusal> {
        if self.known(shown, remote).is_none() {
            self.take(over, now)?;
        }
        Ok(self.check(shown, remote, now)?)
    }

    fn known(&self, shown: &SignedMembership, remote: PeerId) -> Option<Membership> {
        let good = self.good.lock();
        good.get(&remote).filter(|(signed, _)| signed == shown).map(|(_, membership)| *membership)
    }

    /// Takes one of the checks that a connection has.
    fn take(&self, over: &PeerInfo, now: u64) -> Result<(), Refusal> {
        let mut full_at = self.full_at.lock();
        let known = full_at.get(over.connection).copied().unwrap_or(now);
        let (full, free) = CHECKS.take(known, now);
        full_at.insert(over, full);
        free.map_err(|_| Refusal::TooMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::identity::KeyPair;
    use crate::swarm::authority::Authority;
    use crate::swarm::membership::{LIFE_MS, Rights, SKEW_MS};
    use crate::transport::{ConnectionHandle, ConnectionId};

    const NOW: u64 = 2_000_000_000_000;

    fn over(connection: u64) -> PeerInfo {
        let (connection, handle) = (ConnectionId(connection), ConnectionHandle::default());
        PeerInfo { connection, handle, address: None, identity: None }
    }

    fn peer(number: u64) -> PeerId {
        PeerId::from_bytes(*blake3::hash(&number.to_be_bytes()).as_bytes())
    }

    #[test]
    fn what_was_checked_is_not_checked_again_and_ends_all_the_same() {
        let authority = Authority::new(KeyPair::generate());
        let checks = Checks::new(*authority.key());
        let signed = authority.admit(peer(1), Rights::Full, NOW);
        let connection = over(1);
        for _ in 0..100 {
            checks.check_over(&connection, &signed, peer(1), NOW).unwrap();
        }
        let end = NOW + LIFE_MS + SKEW_MS;
        checks.check_over(&connection, &signed, peer(1), end - 1).unwrap();
        let over = checks.check_over(&connection, &signed, peer(1), end);
        assert_eq!(over, Err(Refusal::Membership(Invalid::Over)));
        let other = checks.check(&signed, peer(2), NOW);
        assert_eq!(other, Err(Invalid::OtherPeer), "and not of somebody else");
    }

    #[test]
    fn a_changed_one_is_not_taken_for_the_one_that_was_checked() {
        let authority = Authority::new(KeyPair::generate());
        let checks = Checks::new(*authority.key());
        let signed = authority.admit(peer(1), Rights::ReadOnly, NOW);
        checks.check(&signed, peer(1), NOW).unwrap();
        let mut bytes = signed.as_bytes().to_vec();
        bytes[33] = 1;
        let changed = SignedMembership::from_bytes(&bytes).unwrap();
        assert_eq!(changed.claim().unwrap().rights, Rights::Full);
        assert_eq!(checks.check(&changed, peer(1), NOW), Err(Invalid::OtherAuthority));
        assert_eq!(checks.check(&signed, peer(1), NOW).unwrap().rights, Rights::ReadOnly);
    }

    #[test]
    fn a_connection_has_a_few_checks_at_once_good_or_not_and_more_with_time() {
        let authority = Authority::new(KeyPair::generate());
        let checks = Checks::new(*authority.key());
        let connection = over(1);
        let show = |from| {
            let signed = authority.admit(peer(1), Rights::Full, from);
            checks.check_over(&connection, &signed, peer(1), NOW)
        };
        for n in 0..CHECKS.burst {
            show(NOW - n).unwrap();
        }
        assert_eq!(show(NOW - CHECKS.burst), Err(Refusal::TooMany));
        show(NOW - CHECKS.burst + 1).expect("that one is remembered");
        let forged = Authority::new(KeyPair::generate()).admit(peer(1), Rights::Full, NOW);
        assert_eq!(checks.check_over(&connection, &forged, peer(1), NOW), Err(Refusal::TooMany));
        let later = checks.check_over(&connection, &forged, peer(1), NOW + CHECKS.interval);
        assert_eq!(later, Err(Refusal::Membership(Invalid::OtherAuthority)));
        // Nor for longer where the clock was put back.
        let back = NOW - LIFE_MS;
        assert_eq!(checks.check_over(&connection, &forged, peer(1), back), Err(Refusal::TooMany));
        let later = checks.check_over(&connection, &forged, peer(1), back + CHECKS.interval);
        assert_eq!(later, Err(Refusal::Membership(Invalid::NotYet)), "it is looked at");
        let other = checks.check_over(&over(2), &forged, peer(1), NOW);
        assert_eq!(
            other,
            Err(Refusal::Membership(Invalid::OtherAuthority)),
            "another connection has its own"
        );
    }

    #[test]
    fn of_more_peers_than_are_remembered_each_is_let_in() {
        let authority = Authority::new(KeyPair::generate());
        let checks = Checks::new(*authority.key());
        for number in 0..MAX_REMEMBERED as u64 + 10 {
            let signed = authority.admit(peer(number), Rights::Full, NOW);
            checks.good.lock().insert(peer(number), (signed, signed.claim().unwrap()));
        }
        let signed = authority.admit(peer(1_000_000), Rights::Full, NOW);
        checks.check(&signed, peer(1_000_000), NOW).unwrap();
        assert!(checks.good.lock().len() <= MAX_REMEMBERED);
    }
}
