//! Who decides over a swarm: an Ed25519 key in the catalogue's database, the same for all trackers on it.

use bytes::Bytes;

use super::membership::{self, LIFE_MS, Membership, Rights, SignedMembership};
use super::revocations::{self, RevocationPage};
use crate::model::id::PeerId;
use crate::model::identity::{KeyPair, PublicKey, Signature};

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

    /// What it signs begins with what that is, so nothing is taken for something else.
    pub(super) fn sign(&self, context: &[u8], body: &[u8]) -> Signature {
        self.pair.sign(&[context, body].concat())
    }

    /// A membership of the peer from `now` on.
    pub fn admit(&self, peer: PeerId, rights: Rights, now: u64) -> SignedMembership {
        let membership = Membership { peer, rights, from: now, until: now.saturating_add(LIFE_MS) };
        let signature = self.sign(membership::CONTEXT, &membership.body());
        SignedMembership::new(&membership, &signature)
    }

    /// A page of revocations, as it travels.
    pub fn sign_revocations(&self, page: &RevocationPage) -> Bytes {
        let mut body = page.body();
        let signature = self.sign(revocations::CONTEXT, &body);
        body.extend(signature.as_bytes());
        body.into()
    }
}
