//! The peers that were thrown out and may still have a membership that did not end.
//!
//! Whoever was thrown out is on the list only until the last membership that it may have has ended. Each revocation is numbered
//! by a version of the list: the time, or one more than the one before where that is more. Trackers tell of them in pages, each
//! signed by itself: all revocations between two versions. Who knows all up to the first version takes the page and knows all up
//! to the second, so nobody is ever sent more than a page at a time, and nothing is left out in between.

use std::collections::BTreeMap;

use super::membership::{Invalid, LIFE_MS, SKEW_MS};
use crate::model::id::PeerId;
use crate::model::identity::{PublicKey, Signature};

/// The most revocations on a page: so it fits the header of a message.
pub const PAGE: usize = 1000;
/// The most peers on the list: as many as a catalogue has by default. Whoever has to throw out so many within a day had better
/// let in the others anew; and every peer keeps the whole list, in some megabytes.
pub const MAX_REVOKED: usize = 100_000;
/// How long a peer stays on the list, in milliseconds: as long as somebody's clock may take its last membership for good. A
/// tracker that had not heard of it yet may have signed one a moment later.
pub const LISTED_MS: u64 = LIFE_MS + 3 * SKEW_MS;

pub(super) const CONTEXT: &[u8] = b"enjambre revocations 2";
const VERSION: u8 = 2;
/// The version of the format, and the two of the list.
const HEAD: usize = 1 + 8 + 8;
const ENTRY: usize = 32 + 8;
const SIGNATURE: usize = 64;

/// Somebody who was thrown out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// Who.
    pub peer: PeerId,
    /// The version that the list had with it. About when it was, in milliseconds since 1970-01-01 UTC.
    pub version: u64,
}

impl Revocation {
    /// Whether everybody has forgotten the memberships of the peer by now.
    pub const fn is_over(&self, now: u64) -> bool {
        now >= self.version.saturating_add(LISTED_MS)
    }
}

/// Who was thrown out, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    version: u64,
    peers: BTreeMap<PeerId, u64>,
}

impl Revocations {
    /// All revocations up to this version.
    pub fn new(version: u64, revocations: impl IntoIterator<Item = Revocation>) -> Self {
        let peers = revocations.into_iter().map(|Revocation { peer, version }| (peer, version)).collect();
        Self { version, peers }
    }

    /// Up to which version it has all; 0 is the empty list that everybody begins with.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Whether the peer is on it.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    /// How many peers are on it.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Adds those of another list that are not over.
    pub fn keep(&mut self, others: &Self, now: u64) {
        for (peer, version) in &others.peers {
            if !(Revocation { peer: *peer, version: *version }).is_over(now) {
                self.peers.entry(*peer).or_insert(*version);
            }
        }
    }

    /// All of it in pages, of which each begins where the one before ends. Those of a future that nobody takes, because a clock was
    /// wrong, are on pages of their own.
    pub fn pages(&self, now: u64) -> Vec<RevocationPage> {
        let credible = now.saturating_add(LIFE_MS);
        let of = |(peer, version): (&PeerId, &u64)| Revocation { peer: *peer, version: *version };
        let mut revocations: Vec<Revocation> = self.peers.iter().map(of).collect();
        revocations.sort_unstable_by_key(|revocation| (revocation.version, revocation.peer));
        let (mut after, mut pages) = (0, Vec::new());
        let mut rest = &revocations[..];
        while let Some(last) = rest.get(..PAGE).unwrap_or(rest).last() {
            let mut version = last.version;
            if rest.get(PAGE).is_some_and(|next| next.version == version) {
                // Whoever has a version has all of it, so those of one are on one page.
                let whole = rest.partition_point(|revocation| revocation.version < version);
                version = rest[..whole].last().map_or(version, |last| last.version);
            }
            let past = rest.partition_point(|revocation| revocation.version <= credible);
            if let Some(last) = past.checked_sub(1).and_then(|last| rest.get(last)) {
                version = version.min(last.version);
            }
            let (page, more) =
                rest.split_at(rest.partition_point(|revocation| revocation.version <= version));
            // That more than a page are of one version does not happen: each has its own.
            let page = page.get(..PAGE).unwrap_or(page).to_vec();
            pages.push(RevocationPage { after, version, revocations: page });
            (after, rest) = (version, more);
        }
        match pages.last_mut() {
            // The newest may be so old that they are off the list.
            Some(last) if last.version > credible || self.version <= credible => {
                last.version = last.version.max(self.version);
            }
            _ if self.version > after => {
                pages.push(RevocationPage { after, version: self.version, revocations: Vec::new() });
            }
            _ => {}
        }
        pages
    }

    /// Adds a page; false where it says nothing new.
    ///
    /// # Errors
    /// [`Invalid::Gap`] where something is missing in between, [`Invalid::TooMany`] where it would be more than can be kept.
    pub fn add(&mut self, page: &RevocationPage) -> Result<bool, Invalid> {
        if page.version <= self.version {
            return Ok(false);
        }
        if page.after > self.version {
            return Err(Invalid::Gap);
        }
        let new = page.revocations.iter().filter(|revocation| !self.contains(&revocation.peer)).count();
        if self.peers.len().saturating_add(new) > MAX_REVOKED + PAGE {
            return Err(Invalid::TooMany);
        }
        self.peers.extend(page.revocations.iter().map(|revocation| (revocation.peer, revocation.version)));
        self.version = page.version;
        Ok(true)
    }

    /// Forgets those whose memberships are over; who they are.
    pub fn forget(&mut self, now: u64) -> Vec<PeerId> {
        let mut over = Vec::new();
        self.peers.retain(|peer, version| {
            let stays = !Revocation { peer: *peer, version: *version }.is_over(now);
            if !stays {
                over.push(*peer);
            }
            stays
        });
        over
    }
}

/// The revocations after one version of the list up to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationPage {
    after: u64,
    version: u64,
    /// In the order of their versions, at most [`PAGE`].
    revocations: Vec<Revocation>,
}

impl RevocationPage {
    /// The version that it ends with.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// What it says.
    pub fn revocations(&self) -> &[Revocation] {
        &self.revocations
    }

    /// Whether this is what was signed there.
    pub fn is_in(&self, signed: &[u8]) -> bool {
        signed.split_last_chunk::<SIGNATURE>().is_some_and(|(body, _)| body == self.body())
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(HEAD + self.revocations.len() * ENTRY + SIGNATURE);
        body.push(VERSION);
        body.extend(self.after.to_be_bytes());
        body.extend(self.version.to_be_bytes());
        for Revocation { peer, version } in &self.revocations {
            body.extend(peer.as_bytes());
            body.extend(version.to_be_bytes());
        }
        body
    }

    /// Reads a signed page: version of the format 2 (1 byte), the two versions of the list (8 each, the largest byte first), and for
    /// each revocation, in the order of their versions, peer id (32) and version (8); signature (64).
    ///
    /// # Errors
    /// [`Invalid::Malformed`] and [`Invalid::OtherAuthority`].
    pub fn verify(bytes: &[u8], authority: &PublicKey) -> Result<Self, Invalid> {
        let (body, signature) = bytes.split_last_chunk::<SIGNATURE>().ok_or(Invalid::Malformed)?;
        let page = Self::read(body).ok_or(Invalid::Malformed)?;
        if !authority.verifies(&[CONTEXT, body].concat(), &Signature::from_bytes(*signature)) {
            return Err(Invalid::OtherAuthority);
        }
        Ok(page)
    }

    fn read(body: &[u8]) -> Option<Self> {
        let (head, entries) = body.split_first_chunk::<HEAD>()?;
        let (entries, []) = entries.as_chunks::<ENTRY>() else { return None };
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (after, version) = (number(&head[1..9]), number(&head[9..]));
        if head[0] != VERSION || after >= version || entries.len() > PAGE {
            return None;
        }
        let mut revocations = Vec::with_capacity(entries.len());
        for entry in entries {
            let peer = PeerId::try_from(&entry[..32]).ok()?;
            revocations.push(Revocation { peer, version: number(&entry[32..]) });
        }
        let within = |revocation: &Revocation| after < revocation.version && revocation.version <= version;
        let in_order = revocations.is_sorted_by(|a, b| (a.version, a.peer) < (b.version, b.peer));
        (in_order && revocations.iter().all(within)).then_some(Self { after, version, revocations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::identity::KeyPair;
    use crate::swarm::authority::Authority;
    use proptest::prelude::*;

    const NOW: u64 = 2_000_000_000_000;

    fn authority() -> Authority {
        Authority::new(KeyPair::from_secret(&[1; 32]))
    }

    fn peer(number: u64) -> PeerId {
        PeerId::from_bytes(*blake3::hash(&number.to_be_bytes()).as_bytes())
    }

    /// As many as this, one at each version.
    fn list(count: u64) -> Revocations {
        let revocations = (1..=count).map(|n| Revocation { peer: peer(n), version: NOW + n });
        Revocations::new(NOW + count, revocations)
    }

    #[test]
    fn the_longest_page_fits_a_header_beside_a_membership() {
        let list = list(PAGE as u64);
        let signed = authority().sign_revocations(&list.pages(NOW)[0]);
        assert!(signed.len() <= 48 * 1024);
        assert_eq!(RevocationPage::verify(&signed, authority().key()).as_ref(), Ok(&list.pages(NOW)[0]));
    }

    #[test]
    fn page_by_page_everybody_gets_the_whole_list_wherever_it_begins() {
        let list = list(2 * PAGE as u64 + 7);
        let pages = list.pages(NOW);
        assert_eq!(pages.len(), 3);
        for known in [0, 1, 500, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 6] {
            let mut have = Revocations::new(
                if known == 0 { 0 } else { NOW + known as u64 },
                (1..=known as u64).map(|n| Revocation { peer: peer(n), version: NOW + n }),
            );
            for page in pages.iter().filter(|page| page.version > have.version).collect::<Vec<_>>() {
                assert_eq!(have.add(page), Ok(true));
                assert_eq!(have.add(page), Ok(false), "it is known already");
            }
            assert_eq!(have, list, "from {known} on");
        }
        assert_eq!(Revocations::default().add(&pages[1]), Err(Invalid::Gap), "nothing is left out");
        assert_eq!(Revocations::default().pages(NOW), []);
    }

    #[test]
    fn who_has_no_membership_any_more_goes_and_the_version_stays() {
        let mut list = list(10);
        assert_eq!(list.forget(NOW + 5 + LISTED_MS).len(), 5);
        assert!(!list.contains(&peer(5)) && list.contains(&peer(6)));
        list.forget(u64::MAX);
        assert_eq!((list.len(), list.version()), (0, NOW + 10));
        let [page] = &list.pages(NOW)[..] else { panic!("an empty page tells the version") };
        let mut have = Revocations::default();
        assert_eq!((have.add(page), have.version(), have.len()), (Ok(true), NOW + 10, 0));
    }

    #[test]
    fn a_list_does_not_grow_without_bound() {
        let mut list = list(MAX_REVOKED as u64);
        let last = RevocationPage {
            after: list.version(),
            version: u64::MAX,
            revocations: (0..PAGE as u64)
                .map(|n| Revocation { peer: peer(u64::MAX - n), version: u64::MAX })
                .collect(),
        };
        assert_eq!(list.add(&last), Ok(true), "what trackers let go over it at the same moment");
        list.version -= 1;
        assert_eq!(list.add(&last), Ok(true), "they are on it already");
        let one = Revocation { peer: peer(u64::MAX / 2), version: u64::MAX };
        let more = RevocationPage { revocations: vec![one], ..last };
        list.version -= 1;
        assert_eq!(list.add(&more), Err(Invalid::TooMany));
    }

    #[test]
    fn what_nobody_takes_because_a_clock_was_wrong_is_on_pages_of_its_own() {
        let far = NOW + 2 * LIFE_MS;
        let at = |n: u64, version| Revocation { peer: peer(n), version };
        let list = Revocations::new(far, [at(1, NOW), at(2, NOW + 1), at(3, far)]);
        let told = |list: &Revocations, now| {
            let pages = list.pages(now);
            pages.iter().map(|page| (page.version, page.revocations.len())).collect::<Vec<_>>()
        };
        assert_eq!(told(&list, NOW), [(NOW + 1, 2), (far, 1)]);
        assert_eq!(told(&list, far), [(far, 3)]);
        let mut gone = list.clone();
        gone.peers.remove(&peer(3));
        assert_eq!(told(&gone, NOW), [(NOW + 1, 2), (far, 0)]);
        let mut have = Revocations::default();
        for page in list.pages(NOW) {
            assert_eq!(have.add(&page), Ok(true));
        }
        assert_eq!(have, list);
    }

    #[test]
    fn those_of_one_version_are_on_one_page() {
        let at = |n: u64| Revocation { peer: peer(n), version: NOW + if n < 990 { n } else { 990 } };
        let list = Revocations::new(NOW + 990, (1..1010).map(at));
        let pages = list.pages(NOW);
        let lengths: Vec<_> = pages.iter().map(|page| page.revocations.len()).collect();
        assert_eq!(lengths, [989, 20]);
        let mut have = Revocations::default();
        for page in &pages {
            let signed = authority().sign_revocations(page);
            assert!(page.is_in(&signed) && !pages[0].is_in(&authority().sign_revocations(&pages[1])));
            assert_eq!(have.add(&RevocationPage::verify(&signed, authority().key()).unwrap()), Ok(true));
        }
        assert_eq!(have, list);
        let many = (0..PAGE as u64 + 5).map(|n| Revocation { peer: peer(n), version: NOW });
        assert_eq!(Revocations::new(NOW + 1, many).pages(NOW).len(), 1, "and a page is never too long");
    }

    proptest! {
        #[test]
        fn a_page_is_read_back_and_no_other_bytes_are(
            version in 1u64.., peers in prop::collection::vec((any::<[u8; 32]>(), any::<u64>()), 0..5), at in any::<prop::sample::Index>(),
        ) {
            let revocations = peers.iter().map(|(id, at)| Revocation { peer: PeerId::from_bytes(*id), version: at % version + 1 });
            let list = Revocations::new(version, revocations);
            let signed = authority().sign_revocations(&list.pages(u64::MAX)[0]);
            let page = RevocationPage::verify(&signed, authority().key()).unwrap();
            let mut read = Revocations::default();
            read.add(&page).unwrap();
            prop_assert_eq!(read, list);
            let mut changed = signed.to_vec();
            let at = at.index(changed.len());
            changed[at] ^= 1;
            prop_assert!(RevocationPage::verify(&changed, authority().key()).is_err());
            prop_assert!(RevocationPage::verify(&signed[..at], authority().key()).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(RevocationPage::verify(&bytes, authority().key()).is_err());
        }
    }
}
