//! The authority of a swarm: an Ed25519 key in the catalogue's database, shared by all trackers of the catalogue.

use enjambre_core::model::identity::{PublicKey, Signature};
use enjambre_core::model::membership::{LIFE, Membership, Rights, SignedMembership};
use enjambre_core::{KeyPair, PeerId, UnixMillis};

/// The key of a swarm. Its `Debug` output does not contain the secret.
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

    /// The public key, which verifies its signatures.
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Signs a message of the kind `context`. The context prevents a signature from being used for another kind.
    pub(super) fn sign(&self, context: &[u8], body: &[u8]) -> Signature {
        self.pair.sign(&[context, body].concat())
    }

    /// Signs a membership of the peer that is valid from `now`.
    pub fn admit(&self, peer: PeerId, rights: Rights, now: UnixMillis) -> SignedMembership {
        let membership = Membership { peer, rights, from: now, until: now + LIFE };
        membership.sign(&self.pair)
    }
}
