//! Verification of presented memberships, with a bounded cache.
//!
//! Verifying a signature takes about as long as serving a small request. So it happens without a lock, and the number of
//! verifications per connection is limited.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::per_connection::PerConnection;
use super::refusal::Refusal;
use crate::rate_limit::gcra::RateLimit;
use enjambre_core::model::identity::PublicKey;
use enjambre_core::model::membership::{Invalid, Membership, SignedMembership};
use enjambre_core::{PeerId, PeerInfo, UnixMillis};

/// The limit of verifications per connection.
const LIMIT: RateLimit = RateLimit { burst: 3, interval: Duration::from_secs(60) };
/// The maximum number of cached memberships.
const CAPACITY: usize = 4096;

/// Verifies memberships of one authority.
#[derive(Debug)]
pub struct Verifier {
    authority: PublicKey,
    verified: Mutex<HashMap<PeerId, (SignedMembership, Membership)>>,
    /// The state of [`LIMIT`] for each connection.
    limits: Mutex<PerConnection<UnixMillis>>,
}

impl Verifier {
    /// A verifier of memberships that this authority signed.
    pub fn new(authority: PublicKey) -> Self {
        Self { authority, verified: Mutex::default(), limits: Mutex::default() }
    }

    /// The authority.
    pub const fn authority(&self) -> &PublicKey {
        &self.authority
    }

    /// Returns the content of a signed membership if it is valid for the peer `remote` at the time `now`.
    ///
    /// # Errors
    /// The reason why it is not valid.
    pub fn verify(
        &self,
        signed: &SignedMembership,
        remote: PeerId,
        now: UnixMillis,
    ) -> Result<Membership, Invalid> {
        if let Some(membership) = self.cached(signed, remote) {
            return membership.check_time(now).map(|()| membership);
        }
        if signed.claim()?.peer != remote {
            return Err(Invalid::OtherPeer);
        }
        let membership = signed.verify(&self.authority, now)?;
        let mut verified = self.verified.lock();
        if verified.len() >= CAPACITY && !verified.contains_key(&remote) {
            verified.clear();
        }
        verified.insert(remote, (*signed, membership));
        Ok(membership)
    }

    /// As [`Verifier::verify`], with a rate limit per connection, for a membership in a request of `peer`.
    ///
    /// # Errors
    /// [`Refusal::Membership`] and [`Refusal::TooMany`].
    pub fn verify_limited(
        &self,
        peer: &PeerInfo,
        signed: &SignedMembership,
        remote: PeerId,
        now: UnixMillis,
    ) -> Result<Membership, Refusal> {
        if self.cached(signed, remote).is_none() {
            self.take_permit(peer, now)?;
        }
        Ok(self.verify(signed, remote, now)?)
    }

    fn cached(&self, signed: &SignedMembership, remote: PeerId) -> Option<Membership> {
        let verified = self.verified.lock();
        verified.get(&remote).filter(|(known, _)| known == signed).map(|(_, membership)| *membership)
    }

    fn take_permit(&self, peer: &PeerInfo, now: UnixMillis) -> Result<(), Refusal> {
        let mut limits = self.limits.lock();
        let full_at = limits.get(peer.connection).copied().unwrap_or(now);
        let (full_at, permit) = LIMIT.take(full_at, now);
        limits.insert(peer, full_at);
        permit.map_err(|_| Refusal::TooMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::credentials::authority::Authority;
    use enjambre_core::model::membership::{LIFE, Rights, SKEW};
    use enjambre_core::{ConnectionHandle, ConnectionId, KeyPair};

    const NOW: UnixMillis = UnixMillis(2_000_000_000_000);
    const MS: Duration = Duration::from_millis(1);

    fn peer_info(connection: u64) -> PeerInfo {
        let (connection, handle) = (ConnectionId(connection), ConnectionHandle::default());
        PeerInfo { connection, handle, address: None, identity: None }
    }

    fn peer(number: u64) -> PeerId {
        PeerId::from_bytes(*blake3::hash(&number.to_be_bytes()).as_bytes())
    }

    #[test]
    fn cached_membership_is_not_verified_again_but_expires() {
        let authority = Authority::new(KeyPair::generate());
        let verifier = Verifier::new(*authority.key());
        let signed = authority.admit(peer(1), Rights::Full, NOW);
        let connection = peer_info(1);
        for _ in 0..100 {
            verifier.verify_limited(&connection, &signed, peer(1), NOW).unwrap();
        }
        let end = NOW + LIFE + SKEW;
        verifier.verify_limited(&connection, &signed, peer(1), end - MS).unwrap();
        let expired = verifier.verify_limited(&connection, &signed, peer(1), end);
        assert_eq!(expired, Err(Refusal::Membership(Invalid::Expired)));
        assert_eq!(verifier.verify(&signed, peer(2), NOW), Err(Invalid::OtherPeer));
    }

    #[test]
    fn altered_membership_does_not_match_cached_one() {
        let authority = Authority::new(KeyPair::generate());
        let verifier = Verifier::new(*authority.key());
        let signed = authority.admit(peer(1), Rights::ReadOnly, NOW);
        verifier.verify(&signed, peer(1), NOW).unwrap();
        let mut bytes = signed.as_bytes().to_vec();
        bytes[33] = 1;
        let altered = SignedMembership::from_bytes(&bytes).unwrap();
        assert_eq!(altered.claim().unwrap().rights, Rights::Full);
        assert_eq!(verifier.verify(&altered, peer(1), NOW), Err(Invalid::OtherAuthority));
        assert_eq!(verifier.verify(&signed, peer(1), NOW).unwrap().rights, Rights::ReadOnly);
    }

    #[test]
    fn verifications_are_limited_per_connection() {
        let authority = Authority::new(KeyPair::generate());
        let verifier = Verifier::new(*authority.key());
        let connection = peer_info(1);
        let present = |from| {
            let signed = authority.admit(peer(1), Rights::Full, from);
            verifier.verify_limited(&connection, &signed, peer(1), NOW)
        };
        for n in 0..LIMIT.burst {
            present(NOW - n * MS).unwrap();
        }
        assert_eq!(present(NOW - LIMIT.burst * MS), Err(Refusal::TooMany));
        present(NOW - LIMIT.burst * MS + MS).expect("a cached membership needs no permit");
        let forged = Authority::new(KeyPair::generate()).admit(peer(1), Rights::Full, NOW);
        assert_eq!(verifier.verify_limited(&connection, &forged, peer(1), NOW), Err(Refusal::TooMany));
        let later = verifier.verify_limited(&connection, &forged, peer(1), NOW + LIMIT.interval);
        assert_eq!(later, Err(Refusal::Membership(Invalid::OtherAuthority)));
        // A clock that was set back does not extend the wait.
        let back = NOW - LIFE;
        assert_eq!(verifier.verify_limited(&connection, &forged, peer(1), back), Err(Refusal::TooMany));
        let later = verifier.verify_limited(&connection, &forged, peer(1), back + LIMIT.interval);
        assert_eq!(later, Err(Refusal::Membership(Invalid::NotYetValid)), "it is verified");
        let other = verifier.verify_limited(&peer_info(2), &forged, peer(1), NOW);
        let invalid = Err(Refusal::Membership(Invalid::OtherAuthority));
        assert_eq!(other, invalid, "another connection has permits of its own");
    }

    #[test]
    fn full_cache_does_not_refuse_memberships() {
        let authority = Authority::new(KeyPair::generate());
        let verifier = Verifier::new(*authority.key());
        for number in 0..CAPACITY as u64 + 10 {
            let signed = authority.admit(peer(number), Rights::Full, NOW);
            verifier.verified.lock().insert(peer(number), (signed, signed.claim().unwrap()));
        }
        let signed = authority.admit(peer(1_000_000), Rights::Full, NOW);
        verifier.verify(&signed, peer(1_000_000), NOW).unwrap();
        assert!(verifier.verified.lock().len() <= CAPACITY);
    }
}
