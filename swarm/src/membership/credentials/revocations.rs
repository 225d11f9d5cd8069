//! The revocation list: the revoked peers whose memberships may not have expired.
//!
//! A revocation expires with the last membership that the peer may have. Each revocation has a version of the list: the time,
//! or the previous version plus one if that is larger. Trackers send the list in pages. A page is signed and contains all
//! revocations between two versions. A node whose list is complete up to the first version applies the page, and its list is
//! complete up to the second. So the list is transferred one page at a time and without gaps.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::authority::Authority;
use enjambre_core::model::identity::{PublicKey, Signature};
use enjambre_core::model::membership::{Invalid, LIFE, SKEW};
use enjambre_core::{PeerId, UnixMillis};

/// The maximum number of revocations in a page, which fits the header of a message.
pub const PAGE: usize = 1000;
/// The maximum number of peers on the list, which is the default limit of peers in a catalogue. Every peer stores the whole
/// list, a few megabytes. To revoke more peers within a day, create another authority and invite the remaining members again.
pub const MAX_REVOKED: usize = 100_000;
/// The time that a peer stays on the list. It covers a membership that a tracker signed before it knew of the
/// revocation, and the differences between clocks.
pub const LISTED: Duration = Duration::from_secs(LIFE.as_secs() + 3 * SKEW.as_secs());

pub(super) const CONTEXT: &[u8] = b"enjambre revocations 1";
const VERSION: u8 = 1;
/// The version of the format and the two versions of the list.
const HEAD: usize = 1 + 8 + 8;
const ENTRY: usize = 32 + 8;
const SIGNATURE: usize = 64;

/// A revoked peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// The peer.
    pub peer: PeerId,
    /// The version of the list with this revocation: about its time, see [`UnixMillis`].
    pub version: u64,
}

impl Revocation {
    /// Returns whether all memberships of the peer have expired.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        now >= UnixMillis(self.version) + LISTED
    }
}

/// The revocation list, complete up to its version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    version: u64,
    peers: BTreeMap<PeerId, u64>,
}

impl Revocations {
    /// A list of all revocations up to this version.
    pub fn new(version: u64, revocations: impl IntoIterator<Item = Revocation>) -> Self {
        let peers = revocations.into_iter().map(|Revocation { peer, version }| (peer, version)).collect();
        Self { version, peers }
    }

    /// The version up to which the list is complete. 0 for the initial empty list.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Returns whether the peer is on the list.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    /// The number of peers on the list.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Returns whether the list has no peers.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Adds the revocations of another list that have not expired.
    pub fn merge(&mut self, other: &Self, now: UnixMillis) {
        for (peer, version) in &other.peers {
            if !(Revocation { peer: *peer, version: *version }).is_expired(now) {
                self.peers.entry(*peer).or_insert(*version);
            }
        }
    }

    /// Returns the list in pages. Each page begins where the previous one ends. Versions more than a day in the future, which
    /// result from a wrong clock and which nodes reject, have pages of their own.
    pub fn pages(&self, now: UnixMillis) -> Vec<RevocationPage> {
        let latest = (now + LIFE).get();
        let revocation = |(peer, version): (&PeerId, &u64)| Revocation { peer: *peer, version: *version };
        let mut revocations: Vec<Revocation> = self.peers.iter().map(revocation).collect();
        revocations.sort_unstable_by_key(|revocation| (revocation.version, revocation.peer));
        let (mut after, mut pages) = (0, Vec::new());
        let mut rest = &revocations[..];
        while let Some(last) = rest.get(..PAGE).unwrap_or(rest).last() {
            let mut version = last.version;
            if rest.get(PAGE).is_some_and(|next| next.version == version) {
                // A node with a version has all its revocations, so they share a page.
                let whole = rest.partition_point(|revocation| revocation.version < version);
                version = rest[..whole].last().map_or(version, |last| last.version);
            }
            let past = rest.partition_point(|revocation| revocation.version <= latest);
            if let Some(last) = past.checked_sub(1).and_then(|last| rest.get(last)) {
                version = version.min(last.version);
            }
            let (page, more) =
                rest.split_at(rest.partition_point(|revocation| revocation.version <= version));
            // Each revocation has a version of its own, so those of one version never fill more than a page.
            let page = page.get(..PAGE).unwrap_or(page).to_vec();
            pages.push(RevocationPage { after, version, revocations: page });
            (after, rest) = (version, more);
        }
        match pages.last_mut() {
            // The revocations of the newest versions may have expired.
            Some(last) if last.version > latest || self.version <= latest => {
                last.version = last.version.max(self.version);
            }
            _ if self.version > after => {
                pages.push(RevocationPage { after, version: self.version, revocations: Vec::new() });
            }
            _ => {}
        }
        pages
    }

    /// Adds a page. Returns false if the list already contains it.
    ///
    /// # Errors
    /// [`Invalid::MissingRevocations`] if the list ends before the page begins. [`Invalid::TooManyRevocations`] if the list
    /// would become too long.
    pub fn add(&mut self, page: &RevocationPage) -> Result<bool, Invalid> {
        if page.version <= self.version {
            return Ok(false);
        }
        if page.after > self.version {
            return Err(Invalid::MissingRevocations);
        }
        let new = page.revocations.iter().filter(|revocation| !self.contains(&revocation.peer)).count();
        if self.peers.len().saturating_add(new) > MAX_REVOKED + PAGE {
            return Err(Invalid::TooManyRevocations);
        }
        self.peers.extend(page.revocations.iter().map(|revocation| (revocation.peer, revocation.version)));
        self.version = page.version;
        Ok(true)
    }

    /// Removes and returns the expired revocations.
    pub fn expire(&mut self, now: UnixMillis) -> Vec<PeerId> {
        let mut expired = Vec::new();
        self.peers.retain(|peer, version| {
            let keep = !Revocation { peer: *peer, version: *version }.is_expired(now);
            if !keep {
                expired.push(*peer);
            }
            keep
        });
        expired
    }
}

/// A page of the list: the revocations after one version up to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationPage {
    after: u64,
    version: u64,
    /// In ascending order of their versions, at most [`PAGE`].
    revocations: Vec<Revocation>,
}

impl RevocationPage {
    /// The version up to which the list is complete with this page.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The revocations of the page.
    pub fn revocations(&self) -> &[Revocation] {
        &self.revocations
    }

    /// Returns whether `signed` is a signed page with this content. The signature is not verified.
    pub fn matches(&self, signed: &[u8]) -> bool {
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

    /// Encodes the page with a signature.
    pub fn sign(&self, authority: &Authority) -> Bytes {
        let mut bytes = self.body();
        let signature = authority.sign(CONTEXT, &bytes);
        bytes.extend(signature.as_bytes());
        bytes.into()
    }

    /// Decodes a signed page: version of the format 1 (1 byte), the two versions of the list (8 each, big-endian), for each
    /// revocation in ascending order of the versions the peer id (32) and the version (8), signature (64).
    ///
    /// # Errors
    /// [`Invalid::Malformed`] and [`Invalid::OtherAuthority`].
    pub fn verify(bytes: &[u8], authority: &PublicKey) -> Result<Self, Invalid> {
        let (body, signature) = bytes.split_last_chunk::<SIGNATURE>().ok_or(Invalid::Malformed)?;
        let page = Self::decode(body).ok_or(Invalid::Malformed)?;
        if !authority.verifies(&[CONTEXT, body].concat(), &Signature::from_bytes(*signature)) {
            return Err(Invalid::OtherAuthority);
        }
        Ok(page)
    }

    fn decode(body: &[u8]) -> Option<Self> {
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
    use enjambre_core::KeyPair;
    use proptest::prelude::*;

    const NOW: u64 = 2_000_000_000_000;
    const DAY: u64 = 24 * 60 * 60 * 1000;

    fn authority() -> Authority {
        Authority::new(KeyPair::from_secret(&[1; 32]))
    }

    fn peer(number: u64) -> PeerId {
        PeerId::from_bytes(*blake3::hash(&number.to_be_bytes()).as_bytes())
    }

    /// A list of `count` revocations, each with a version of its own.
    fn list(count: u64) -> Revocations {
        let revocations = (1..=count).map(|n| Revocation { peer: peer(n), version: NOW + n });
        Revocations::new(NOW + count, revocations)
    }

    #[test]
    fn full_page_fits_a_header_with_a_membership() {
        let list = list(PAGE as u64);
        let signed = list.pages(UnixMillis(NOW))[0].sign(&authority());
        assert!(signed.len() <= 48 * 1024);
        assert_eq!(
            RevocationPage::verify(&signed, authority().key()).as_ref(),
            Ok(&list.pages(UnixMillis(NOW))[0])
        );
    }

    #[test]
    fn pages_complete_the_list_from_any_version() {
        let list = list(2 * PAGE as u64 + 7);
        let pages = list.pages(UnixMillis(NOW));
        assert_eq!(pages.len(), 3);
        for known in [0, 1, 500, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 6] {
            let mut have = Revocations::new(
                if known == 0 { 0 } else { NOW + known as u64 },
                (1..=known as u64).map(|n| Revocation { peer: peer(n), version: NOW + n }),
            );
            for page in pages.iter().filter(|page| page.version > have.version).collect::<Vec<_>>() {
                assert_eq!(have.add(page), Ok(true));
                assert_eq!(have.add(page), Ok(false), "it is known");
            }
            assert_eq!(have, list, "from version {known}");
        }
        assert_eq!(Revocations::default().add(&pages[1]), Err(Invalid::MissingRevocations));
        assert_eq!(Revocations::default().pages(UnixMillis(NOW)), []);
    }

    #[test]
    fn expired_revocations_go_but_the_version_stays() {
        let mut list = list(10);
        assert_eq!(list.expire(UnixMillis(NOW + 5) + LISTED).len(), 5);
        assert!(!list.contains(&peer(5)) && list.contains(&peer(6)));
        list.expire(UnixMillis(u64::MAX));
        assert_eq!((list.len(), list.version()), (0, NOW + 10));
        let [page] = &list.pages(UnixMillis(NOW))[..] else { panic!("an empty page has the version") };
        let mut have = Revocations::default();
        assert_eq!((have.add(page), have.version(), have.len()), (Ok(true), NOW + 10, 0));
    }

    #[test]
    fn list_length_is_bounded() {
        let mut list = list(MAX_REVOKED as u64);
        let last = RevocationPage {
            after: list.version(),
            version: u64::MAX,
            revocations: (0..PAGE as u64)
                .map(|n| Revocation { peer: peer(u64::MAX - n), version: u64::MAX })
                .collect(),
        };
        assert_eq!(list.add(&last), Ok(true), "trackers may exceed the limit by a page at the same time");
        list.version -= 1;
        assert_eq!(list.add(&last), Ok(true), "no new peers");
        let one = Revocation { peer: peer(u64::MAX / 2), version: u64::MAX };
        let more = RevocationPage { revocations: vec![one], ..last };
        list.version -= 1;
        assert_eq!(list.add(&more), Err(Invalid::TooManyRevocations));
    }

    #[test]
    fn far_future_versions_have_their_own_pages() {
        let far = NOW + 2 * DAY;
        let at = |n: u64, version| Revocation { peer: peer(n), version };
        let list = Revocations::new(far, [at(1, NOW), at(2, NOW + 1), at(3, far)]);
        let summary = |list: &Revocations, now| {
            let pages = list.pages(UnixMillis(now));
            pages.iter().map(|page| (page.version, page.revocations.len())).collect::<Vec<_>>()
        };
        assert_eq!(summary(&list, NOW), [(NOW + 1, 2), (far, 1)]);
        assert_eq!(summary(&list, far), [(far, 3)]);
        let mut emptied = list.clone();
        emptied.peers.remove(&peer(3));
        assert_eq!(summary(&emptied, NOW), [(NOW + 1, 2), (far, 0)]);
        let mut have = Revocations::default();
        for page in list.pages(UnixMillis(NOW)) {
            assert_eq!(have.add(&page), Ok(true));
        }
        assert_eq!(have, list);
    }

    #[test]
    fn revocations_of_one_version_share_a_page() {
        let at = |n: u64| Revocation { peer: peer(n), version: NOW + if n < 990 { n } else { 990 } };
        let list = Revocations::new(NOW + 990, (1..1010).map(at));
        let pages = list.pages(UnixMillis(NOW));
        let lengths: Vec<_> = pages.iter().map(|page| page.revocations.len()).collect();
        assert_eq!(lengths, [989, 20]);
        let mut have = Revocations::default();
        for page in &pages {
            let signed = page.sign(&authority());
            assert!(page.matches(&signed) && !pages[0].matches(&pages[1].sign(&authority())));
            assert_eq!(have.add(&RevocationPage::verify(&signed, authority().key()).unwrap()), Ok(true));
        }
        assert_eq!(have, list);
        let many = (0..PAGE as u64 + 5).map(|n| Revocation { peer: peer(n), version: NOW });
        assert_eq!(
            Revocations::new(NOW + 1, many).pages(UnixMillis(NOW)).len(),
            1,
            "a page is never too long"
        );
    }

    proptest! {
        #[test]
        fn page_round_trips_and_altered_bytes_are_rejected(
            version in 1u64.., peers in prop::collection::vec((any::<[u8; 32]>(), any::<u64>()), 0..5), at in any::<prop::sample::Index>(),
        ) {
            let revocations = peers.iter().map(|(id, at)| Revocation { peer: PeerId::from_bytes(*id), version: at % version + 1 });
            let list = Revocations::new(version, revocations);
            let signed = list.pages(UnixMillis(u64::MAX))[0].sign(&authority());
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
        fn any_bytes_are_rejected_without_a_signature(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(RevocationPage::verify(&bytes, authority().key()).is_err());
        }
    }
}
