//! The claims to one file in as little memory as possible: the lookup cache has more of these than of anything else.

use crate::catalogue::layout::{Claim, PeerNumber};

/// The peer has the whole file.
const COMPLETE: u64 = 1;
/// The claimed size differs from that of the file.
const OTHER_SIZE: u64 = 2;
/// The peer is alive and has an endpoint for requesters on this host. Valid as long as the answers about the file.
const LOCAL: u64 = 4;
/// The same for all other requesters.
const REMOTE: u64 = 8;

/// A claim: the number of the peer, which has 48 bits, above the flags.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedClaim(u64);

impl PackedClaim {
    fn new(peer: PeerNumber, claim: Claim, file_size: u64) -> Self {
        let complete = if claim.complete { COMPLETE } else { 0 };
        let other = if claim.size == file_size { 0 } else { OTHER_SIZE };
        Self(peer.0 << 16 | complete | other)
    }

    pub(super) const fn peer(&self) -> PeerNumber {
        PeerNumber(self.0 >> 16)
    }

    const fn is(&self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    fn set(&mut self, flag: u64, on: bool) {
        self.0 = if on { self.0 | flag } else { self.0 & !flag };
    }
}

/// Sets or removes the element for which a binary search returned `found`.
fn put<T>(list: &mut Vec<T>, found: Result<usize, usize>, value: Option<T>) {
    match (found, value) {
        (Ok(at), Some(value)) => list[at] = value,
        (Err(at), Some(value)) => list.insert(at, value),
        (Ok(at), None) => drop(list.remove(at)),
        (Err(_), None) => {}
    }
}

/// The claims to a file, in the order of the peers, with a fixed capacity.
#[derive(Debug)]
pub(super) struct ClaimList {
    file_size: u64,
    claims: Vec<PackedClaim>,
    /// The claimed sizes that differ from the size of the file.
    sizes: Vec<(PeerNumber, u64)>,
    changes: u64,
}

impl ClaimList {
    /// A list of these claims, which are in the order of the peers, with capacity for a quarter more.
    pub(super) fn new(file_size: u64, claims: &[(PeerNumber, Claim)]) -> Self {
        let mut packed = Vec::with_capacity(claims.len() + claims.len() / 4 + 4);
        packed.extend(claims.iter().map(|(peer, claim)| PackedClaim::new(*peer, *claim, file_size)));
        let others = claims.iter().filter(|(_, claim)| claim.size != file_size);
        let count = others.clone().count();
        let mut sizes = Vec::with_capacity(count + count / 4);
        sizes.extend(others.map(|(peer, claim)| (*peer, claim.size)));
        Self { file_size, claims: packed, sizes, changes: 0 }
    }

    /// The memory of the list in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.claims.capacity() * size_of::<PackedClaim>()
            + self.sizes.capacity() * size_of::<(PeerNumber, u64)>()
    }

    pub(super) const fn len(&self) -> usize {
        self.claims.len()
    }

    /// The number of changes so far.
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn get(&self, packed: PackedClaim) -> Claim {
        let other = || {
            let at = self.sizes.binary_search_by_key(&packed.peer(), |(peer, _)| *peer).ok()?;
            Some(self.sizes[at].1)
        };
        let size = if packed.is(OTHER_SIZE) { other() } else { None };
        Claim { size: size.unwrap_or(self.file_size), complete: packed.is(COMPLETE) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerNumber, Claim)> + '_ {
        self.claims.iter().map(|packed| (packed.peer(), self.get(*packed)))
    }

    /// Sets or removes a claim. Returns `false` if it exceeds the capacity.
    pub(super) fn set(&mut self, peer: PeerNumber, claim: Option<Claim>) -> bool {
        let found = self.claims.binary_search_by_key(&peer, PackedClaim::peer);
        if found.ok().map(|at| self.get(self.claims[at])) == claim {
            return true;
        }
        let size = claim.map(|claim| claim.size).filter(|size| *size != self.file_size);
        let found_size = self.sizes.binary_search_by_key(&peer, |(peer, _)| *peer);
        let grows = found.is_err() && self.claims.len() >= self.claims.capacity();
        if grows || (size.is_some() && found_size.is_err() && self.sizes.len() >= self.sizes.capacity()) {
            return false;
        }
        let packed = claim.map(|claim| PackedClaim::new(peer, claim, self.file_size));
        put(&mut self.claims, found, packed);
        put(&mut self.sizes, found_size, size.map(|size| (peer, size)));
        self.changes += 1;
        true
    }

    /// Sets for each claim, in order, whether its peer is reachable for local and for remote requesters.
    pub(super) fn set_reachable(&mut self, reachable: impl Iterator<Item = (bool, bool)>) {
        for (packed, (local, remote)) in self.claims.iter_mut().zip(reachable) {
            packed.set(LOCAL, local);
            packed.set(REMOTE, remote);
        }
    }

    /// Returns the claims of reachable peers.
    pub(super) fn reachable(&self, is_local: bool) -> Vec<PackedClaim> {
        let flag = if is_local { LOCAL } else { REMOTE };
        self.claims.iter().copied().filter(|packed| packed.is(flag)).collect()
    }
}

#[cfg(test)]
pub(crate) mod fuzz {
    use std::collections::BTreeMap;

    use super::*;

    const FILE_SIZE: u64 = 7;

    /// Sets and removes claims; the list has the same claims as a map until it exceeds its capacity. The first 16 bytes are the
    /// initial claims. Each claim, and each step, is two bytes: a peer, and the claim.
    pub(crate) fn claim_list(data: &[u8]) {
        let claim = |byte: u8| Claim { size: FILE_SIZE + u64::from(byte >> 4), complete: byte & 1 == 1 };
        let (first, steps) = data.split_at(data.len().min(16));
        let first = first.as_chunks::<2>().0.iter();
        let mut model: BTreeMap<PeerNumber, Claim> =
            first.map(|[peer, byte]| (PeerNumber((*peer).into()), claim(*byte))).collect();
        let claims: Vec<_> = model.iter().map(|(peer, claim)| (*peer, *claim)).collect();
        let mut list = ClaimList::new(FILE_SIZE, &claims);
        for [peer, byte] in steps.as_chunks::<2>().0 {
            let peer = PeerNumber((*peer).into());
            let claim = (*byte & 2 == 0).then(|| claim(*byte));
            if !list.set(peer, claim) {
                return;
            }
            match claim {
                Some(claim) => model.insert(peer, claim),
                None => model.remove(&peer),
            };
            assert!(list.iter().eq(model.iter().map(|(peer, claim)| (*peer, *claim))));
            assert_eq!(list.len(), model.len());
        }
    }
}
