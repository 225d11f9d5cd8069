//! Who decides over a swarm: an Ed25519 key in the catalogue's database, the same for all trackers on it.

use bytes::Bytes;

use super::membership::{self, LIFE_MS, Membership, Rights, SignedMembership};
use super::revocations::{self, Revocations};
use crate::model::id::PeerId;
use crate::model::identity::{KeyPair, PublicKey};

/// The key of a swarm. Its secret is shown by no formatter.
#[derive(Debug, Clone)]
pub struct Authority {
    pair: KeyPair,
    key: PublicKey,
}

impl Authority {
    /// The authority with this key.
    pub fn new(pair: KeyPair) -> Self {
        let key = pair.public();
        Self { pair, key }
    }

    /// What its signatures are checked against.
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }

    /// A membership of the peer from `now` on.
    pub fn admit(&self, peer: PeerId, rights: Rights, now: u64) -> SignedMembership {
        let membership = Membership { peer, rights, from: now, until: now.saturating_add(LIFE_MS) };
        let signature = self.pair.sign(&[membership::CONTEXT, &membership.body()].concat());
        SignedMembership::new(&membership, &signature)
    }

    /// A list of revocations, as it travels and is kept.
    pub fn sign_revocations(&self, revocations: &Revocations) -> Bytes {
        let body = revocations.body();
        let signature = self.pair.sign(&[revocations::CONTEXT, &body].concat());
        [&body[..], signature.as_bytes()].concat().into()
    }
}
