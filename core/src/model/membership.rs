//! Membership credentials: a statement, signed by the swarm's authority, that a peer is a member until it expires.
//!
//! A credential has a fixed length, so untrusted input cannot make the parser allocate or recurse.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::id::PeerId;
use crate::model::identity::{KeyPair, PublicKey, Signature};
use crate::model::time::UnixMillis;

/// The validity period of a membership.
pub const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// The maximum difference between the clocks of two nodes.
pub const SKEW: Duration = Duration::from_secs(5 * 60);

/// The prefix of the signed message. The bytes before the signature follow it.
pub const CONTEXT: &[u8] = b"enjambre membership 1";
const VERSION: u8 = 1;
/// Version, peer id, rights, begin and end.
const BODY: usize = 1 + 32 + 1 + 8 + 8;
const LENGTH: usize = BODY + 64;

/// The rights of a member. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rights {
    /// Look up, download and announce files.
    ReadOnly,
    /// Publish files as well.
    Full,
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "read-only",
            Self::Full => "full",
        })
    }
}

/// The content of a membership credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// The member.
    pub peer: PeerId,
    /// Its rights.
    pub rights: Rights,
    /// The begin of its validity.
    pub from: UnixMillis,
    /// The end of its validity, exclusive.
    pub until: UnixMillis,
}

/// Why a credential of an authority is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The bytes are not a credential.
    #[error("the credential is malformed")]
    Malformed,
    /// The signature is not one of this swarm's authority.
    #[error("the credential is not signed by the authority of this swarm")]
    OtherAuthority,
    /// The validity begins in the future.
    #[error("the credential is not yet valid; check the clocks of this host and of the tracker")]
    NotYetValid,
    /// The validity ended.
    #[error("the credential expired")]
    Expired,
    /// The credential names another peer.
    #[error("the credential belongs to another peer")]
    OtherPeer,
    /// The peer is revoked.
    #[error("the peer is revoked")]
    Revoked,
    /// A page of revocations does not continue the known ones.
    #[error("revocations before this page are missing")]
    MissingRevocations,
    /// More revocations than a node stores.
    #[error("too many revocations")]
    TooManyRevocations,
}

impl Membership {
    /// Checks the validity period at the time `now`, with a tolerance of [`SKEW`].
    ///
    /// # Errors
    /// [`Invalid::NotYetValid`] and [`Invalid::Expired`].
    pub fn check_time(&self, now: UnixMillis) -> Result<(), Invalid> {
        if now + SKEW < self.from {
            return Err(Invalid::NotYetValid);
        }
        if now >= self.until + SKEW {
            return Err(Invalid::Expired);
        }
        Ok(())
    }

    /// Signs the membership with the key of an authority.
    pub fn sign(&self, authority: &KeyPair) -> SignedMembership {
        let body = self.body();
        let signature = authority.sign(&[CONTEXT, &body].concat());
        let mut bytes = [0; LENGTH];
        bytes[..BODY].copy_from_slice(&body);
        bytes[BODY..].copy_from_slice(signature.as_bytes());
        SignedMembership(bytes)
    }

    /// The signed bytes, without [`CONTEXT`].
    pub fn body(&self) -> [u8; BODY] {
        let mut body = [0; BODY];
        body[0] = VERSION;
        body[1..33].copy_from_slice(self.peer.as_bytes());
        body[33] = u8::from(self.rights == Rights::Full);
        body[34..42].copy_from_slice(&self.from.get().to_be_bytes());
        body[42..].copy_from_slice(&self.until.get().to_be_bytes());
        body
    }
}

/// A membership with its signature, as it is transferred and stored: version 1 (1 byte), peer id (32), rights (1: 0 read-only,
/// 1 full), begin and end (8 each, big-endian), signature (64).
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedMembership(#[serde(with = "super::bytes")] [u8; LENGTH]);

impl SignedMembership {
    /// Returns the membership with these bytes, or `None` if their number is wrong. Nothing is verified.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// The encoded bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Decodes the membership without verifying its signature or validity.
    ///
    /// # Errors
    /// [`Invalid::Malformed`].
    pub fn claim(&self) -> Result<Membership, Invalid> {
        let (body, _) = self.0.split_first_chunk::<BODY>().ok_or(Invalid::Malformed)?;
        let time =
            |at: usize| UnixMillis(body[at..at + 8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
        let rights = match (body[0], body[33]) {
            (VERSION, 0) => Rights::ReadOnly,
            (VERSION, 1) => Rights::Full,
            _ => return Err(Invalid::Malformed),
        };
        let peer = PeerId::try_from(&body[1..33]).map_err(|_| Invalid::Malformed)?;
        Ok(Membership { peer, rights, from: time(34), until: time(42) })
    }

    /// Decodes the membership and verifies its validity period, then its signature. The period comes first because its
    /// check is cheap.
    ///
    /// # Errors
    /// The reason why the membership is not accepted.
    pub fn verify(&self, authority: &PublicKey, now: UnixMillis) -> Result<Membership, Invalid> {
        let membership = self.claim()?;
        membership.check_time(now)?;
        let (body, signature) = self.0.split_first_chunk::<BODY>().ok_or(Invalid::Malformed)?;
        let signature = Signature::from_bytes(signature.try_into().map_err(|_| Invalid::Malformed)?);
        if !authority.verifies(&[CONTEXT, body].concat(), &signature) {
            return Err(Invalid::OtherAuthority);
        }
        Ok(membership)
    }
}

impl fmt::Debug for SignedMembership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.claim().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis(2_000_000_000_000);
    const MS: Duration = Duration::from_millis(1);
    const PEER: PeerId = PeerId::from_bytes([7; 32]);

    fn authority() -> KeyPair {
        KeyPair::from_secret(&[1; 32])
    }

    fn membership(peer: PeerId, rights: Rights, from: UnixMillis) -> Membership {
        Membership { peer, rights, from, until: from + LIFE }
    }

    fn signed() -> SignedMembership {
        membership(PEER, Rights::Full, NOW).sign(&authority())
    }

    #[test]
    fn membership_is_valid_for_its_period_with_clock_skew() {
        let verify = |now| signed().verify(&authority().public(), now);
        let expected = membership(PEER, Rights::Full, NOW);
        assert_eq!(verify(NOW), Ok(expected));
        assert_eq!(verify(NOW - SKEW), Ok(expected));
        assert_eq!(verify(NOW - SKEW - MS), Err(Invalid::NotYetValid));
        assert_eq!(verify(NOW + LIFE + SKEW - MS), Ok(expected));
        assert_eq!(verify(NOW + LIFE + SKEW), Err(Invalid::Expired));
    }

    #[test]
    fn membership_of_other_authority_is_refused() {
        let other = KeyPair::from_secret(&[2; 32]).public();
        assert_eq!(signed().verify(&other, NOW), Err(Invalid::OtherAuthority));
    }

    proptest! {
        #[test]
        fn flipped_bit_fails_verification(at in 0..LENGTH * 8) {
            let mut bytes = signed().0;
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(SignedMembership(bytes).verify(&authority().public(), NOW).is_err());
        }

        #[test]
        fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), now in any::<u64>()) {
            if let Some(signed) = SignedMembership::from_bytes(&bytes) {
                prop_assert!(signed.verify(&authority().public(), UnixMillis(now)).is_err());
            } else {
                prop_assert_ne!(bytes.len(), LENGTH);
            }
        }

        #[test]
        fn membership_round_trips(peer in any::<[u8; 32]>(), full in any::<bool>(), now in any::<u64>()) {
            let rights = if full { Rights::Full } else { Rights::ReadOnly };
            let expected = membership(PeerId::from_bytes(peer), rights, UnixMillis(now));
            prop_assert_eq!(expected.sign(&authority()).claim().unwrap(), expected);
        }
    }
}
