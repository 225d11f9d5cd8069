//! What says that a peer is a member of a swarm: signed by the swarm's authority, for a day.
//!
//! It has a fixed length, so there is nothing to parse that a stranger could make large or deep.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::id::PeerId;
use crate::model::identity::{PublicKey, Signature};

/// How long a membership lasts, in milliseconds.
pub const LIFE_MS: u64 = 24 * 60 * 60 * 1000;
/// How far apart the clocks of two nodes may be, in milliseconds.
pub const SKEW_MS: u64 = 5 * 60 * 1000;

/// What is signed: this, and then the bytes in front of the signature.
pub(super) const CONTEXT: &[u8] = b"enjambre membership 1";
const VERSION: u8 = 1;
/// Version, peer, rights, begin and end.
const BODY: usize = 1 + 32 + 1 + 8 + 8;
const LENGTH: usize = BODY + 64;

/// What a member may do. The later may all that the earlier may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rights {
    /// Find and download files, and offer what it has.
    ReadOnly,
    /// Publish as well.
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

/// A membership, as it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// Whose it is.
    pub peer: PeerId,
    /// What the peer may do.
    pub rights: Rights,
    /// When it begins, in milliseconds since 1970-01-01 UTC.
    pub from: u64,
    /// When it ends.
    pub until: u64,
}

/// Why a membership, or what else an authority signs, is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// It is not one.
    #[error("it is not well formed")]
    Malformed,
    /// The authority of this swarm did not sign it.
    #[error("it is not signed by the authority of this swarm")]
    OtherAuthority,
    /// It is of the future; clocks may be wrong.
    #[error("it is not valid yet; the clock of one of the two is wrong")]
    NotYet,
    /// It ended.
    #[error("it is over")]
    Over,
    /// It is another peer's.
    #[error("it belongs to another peer")]
    OtherPeer,
    /// The peer was thrown out.
    #[error("the peer was thrown out of the swarm")]
    Revoked,
    /// It does not go on from what is known.
    #[error("there are revocations missing in front of it")]
    Gap,
    /// It would be more than anybody keeps.
    #[error("it has more revocations than can be kept")]
    TooMany,
}

impl Membership {
    /// Whether it holds at the time `now`, by the clock of somebody else than who signed it.
    ///
    /// # Errors
    /// [`Invalid::NotYet`] and [`Invalid::Over`].
    pub const fn check_time(&self, now: u64) -> Result<(), Invalid> {
        if now.saturating_add(SKEW_MS) < self.from {
            return Err(Invalid::NotYet);
        }
        if now >= self.until.saturating_add(SKEW_MS) {
            return Err(Invalid::Over);
        }
        Ok(())
    }

    pub(super) fn body(&self) -> [u8; BODY] {
        let mut body = [0; BODY];
        body[0] = VERSION;
        body[1..33].copy_from_slice(self.peer.as_bytes());
        body[33] = u8::from(self.rights == Rights::Full);
        body[34..42].copy_from_slice(&self.from.to_be_bytes());
        body[42..].copy_from_slice(&self.until.to_be_bytes());
        body
    }
}

/// A membership with its signature, as it travels and is kept: version 1 (1 byte), peer id (32), rights (1: 0 read-only, 1
/// full), begin and end (8 each, the largest byte first), signature (64).
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedMembership(#[serde(with = "serde_bytes")] [u8; LENGTH]);

impl SignedMembership {
    pub(super) fn new(membership: &Membership, signature: &Signature) -> Self {
        let mut bytes = [0; LENGTH];
        bytes[..BODY].copy_from_slice(&membership.body());
        bytes[BODY..].copy_from_slice(signature.as_bytes());
        Self(bytes)
    }

    /// The membership with these bytes; none where there are more or fewer than it has.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// All of its bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What it says, whoever signed it.
    ///
    /// # Errors
    /// [`Invalid::Malformed`].
    pub fn claim(&self) -> Result<Membership, Invalid> {
        let (body, _) = self.0.split_first_chunk::<BODY>().ok_or(Invalid::Malformed)?;
        let number = |at: usize| body[at..at + 8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let rights = match (body[0], body[33]) {
            (VERSION, 0) => Rights::ReadOnly,
            (VERSION, 1) => Rights::Full,
            _ => return Err(Invalid::Malformed),
        };
        let peer = PeerId::try_from(&body[1..33]).map_err(|_| Invalid::Malformed)?;
        Ok(Membership { peer, rights, from: number(34), until: number(42) })
    }

    /// What it says, if this authority signed it and it holds at the time `now`. The time is looked at first, as that costs
    /// nothing.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn verify(&self, authority: &PublicKey, now: u64) -> Result<Membership, Invalid> {
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
    use crate::model::identity::KeyPair;
    use crate::swarm::authority::Authority;
    use proptest::prelude::*;

    const NOW: u64 = 2_000_000_000_000;

    fn signed() -> (Authority, SignedMembership, PeerId) {
        let authority = Authority::new(KeyPair::from_secret(&[1; 32]));
        let peer = PeerId::from_bytes([7; 32]);
        (authority.clone(), authority.admit(peer, Rights::Full, NOW), peer)
    }

    #[test]
    fn it_holds_for_a_day_and_the_difference_of_the_clocks() {
        let (authority, signed, peer) = signed();
        let verify = |now| signed.verify(authority.key(), now);
        let expected = Membership { peer, rights: Rights::Full, from: NOW, until: NOW + LIFE_MS };
        assert_eq!(verify(NOW), Ok(expected));
        assert_eq!(verify(NOW - SKEW_MS), Ok(expected));
        assert_eq!(verify(NOW - SKEW_MS - 1), Err(Invalid::NotYet));
        assert_eq!(verify(NOW + LIFE_MS + SKEW_MS - 1), Ok(expected));
        assert_eq!(verify(NOW + LIFE_MS + SKEW_MS), Err(Invalid::Over));
    }

    #[test]
    fn another_authority_s_is_refused() {
        let (_, signed, _) = signed();
        let other = Authority::new(KeyPair::from_secret(&[2; 32]));
        assert_eq!(signed.verify(other.key(), NOW), Err(Invalid::OtherAuthority));
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed(at in 0..LENGTH * 8) {
            let (authority, signed, _) = signed();
            let mut bytes = signed.0;
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(SignedMembership(bytes).verify(authority.key(), NOW).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), now in any::<u64>()) {
            let (authority, ..) = signed();
            if let Some(signed) = SignedMembership::from_bytes(&bytes) {
                prop_assert!(signed.verify(authority.key(), now).is_err());
            } else {
                prop_assert_ne!(bytes.len(), LENGTH);
            }
        }

        #[test]
        fn what_it_says_is_read_back(peer in any::<[u8; 32]>(), full in any::<bool>(), now in any::<u64>()) {
            let authority = Authority::new(KeyPair::from_secret(&[1; 32]));
            let rights = if full { Rights::Full } else { Rights::ReadOnly };
            let claim = authority.admit(PeerId::from_bytes(peer), rights, now).claim().unwrap();
            let until = now.saturating_add(LIFE_MS);
            prop_assert_eq!(claim, Membership { peer: PeerId::from_bytes(peer), rights, from: now, until });
        }
    }
}
