//! The peers that were thrown out and may still have a membership that did not end.
//!
//! The list is small, because whoever was thrown out is on it only until the last membership that it may have has ended.

use super::membership::{Invalid, LIFE_MS, SKEW_MS};
use crate::model::id::PeerId;
use crate::model::identity::{PublicKey, Signature};

/// The most peers on a list: so it fits the header of a message and a value of every database.
pub const MAX_REVOKED: usize = 1000;
/// How long a peer stays on the list, in milliseconds: as long as somebody's clock may take its last membership for good. A
/// tracker that had not heard of it yet may have signed one a moment later.
pub const LISTED_MS: u64 = LIFE_MS + 3 * SKEW_MS;

pub(super) const CONTEXT: &[u8] = b"enjambre revocations 1";
const VERSION: u8 = 1;
const HEAD: usize = 1 + 8;
const SIGNATURE: usize = 64;

/// A list of revocations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    version: u64,
    /// Ascending, each once.
    peers: Vec<PeerId>,
}

impl Revocations {
    /// A list. One with a higher version takes the place of those before it.
    pub fn new(version: u64, mut peers: Vec<PeerId>) -> Self {
        peers.sort_unstable();
        peers.dedup();
        Self { version, peers }
    }

    /// The version; 0 is the empty list that everybody begins with.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Whether the peer is on it.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.peers.binary_search(peer).is_ok()
    }

    /// The peers on it, ascending.
    pub fn peers(&self) -> &[PeerId] {
        &self.peers
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(HEAD + self.peers.len() * 32);
        body.push(VERSION);
        body.extend(self.version.to_be_bytes());
        for peer in &self.peers {
            body.extend(peer.as_bytes());
        }
        body
    }

    /// Reads a signed list: version of the format 1 (1 byte), version of the list (8, the largest byte first), peer ids (32
    /// each, ascending), signature (64).
    ///
    /// # Errors
    /// [`Invalid::Malformed`] and [`Invalid::OtherAuthority`].
    pub fn verify(bytes: &[u8], authority: &PublicKey) -> Result<Self, Invalid> {
        let (body, signature) = bytes.split_last_chunk::<SIGNATURE>().ok_or(Invalid::Malformed)?;
        let Some(([VERSION, version @ ..], peers)) = body.split_first_chunk::<HEAD>() else {
            return Err(Invalid::Malformed);
        };
        let version = version.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (peers, []) = peers.as_chunks::<32>() else { return Err(Invalid::Malformed) };
        if peers.len() > MAX_REVOKED || !peers.is_sorted_by(|a, b| a < b) {
            return Err(Invalid::Malformed);
        }
        if !authority.verifies(&[CONTEXT, body].concat(), &Signature::from_bytes(*signature)) {
            return Err(Invalid::OtherAuthority);
        }
        Ok(Self { version, peers: peers.iter().map(|peer| PeerId::from_bytes(*peer)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::identity::KeyPair;
    use crate::swarm::authority::Authority;
    use proptest::prelude::*;

    fn authority() -> Authority {
        Authority::new(KeyPair::from_secret(&[1; 32]))
    }

    #[test]
    fn the_longest_list_fits_a_header_beside_a_membership() {
        let peers = (0..MAX_REVOKED as u64).map(|n| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            PeerId::from_bytes(id)
        });
        let list = Revocations::new(u64::MAX, peers.collect());
        let signed = authority().sign_revocations(&list);
        assert!(signed.len() <= 32 * 1024);
        assert_eq!(Revocations::verify(&signed, authority().key()), Ok(list));
    }

    proptest! {
        #[test]
        fn a_list_is_read_back_and_no_other_bytes_are(
            version in any::<u64>(), peers in prop::collection::vec(any::<[u8; 32]>(), 0..5), at in any::<prop::sample::Index>(),
        ) {
            let list = Revocations::new(version, peers.iter().map(|id| PeerId::from_bytes(*id)).collect());
            let signed = authority().sign_revocations(&list);
            prop_assert_eq!(Revocations::verify(&signed, authority().key()), Ok(list.clone()));
            prop_assert!(peers.iter().all(|id| list.contains(&PeerId::from_bytes(*id))));
            let mut changed = signed.to_vec();
            let at = at.index(changed.len());
            changed[at] ^= 1;
            prop_assert!(Revocations::verify(&changed, authority().key()).is_err());
            prop_assert!(Revocations::verify(&signed[..at], authority().key()).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Revocations::verify(&bytes, authority().key()).is_err());
        }
    }
}
