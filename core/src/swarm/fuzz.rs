//! Fuzz targets: invitations, memberships and pages of revocations. Nobody gets past a checksum or a signature with changed
//! bytes, so these put good ones behind whatever they are given: what is read then is what a tracker gone mad could send.

use super::authority::Authority;
use super::invitation::{self, Invitation};
use super::membership::{self, LIFE_MS, SignedMembership};
use super::revocations::{self, RevocationPage, Revocations};
use crate::model::identity::KeyPair;

fn authority() -> Authority {
    Authority::new(KeyPair::from_secret(&[1; 32]))
}

/// A line: one that is given as it is, behind a byte that is 0, or one of a body with the right checksum.
pub(crate) fn invitation(data: &[u8]) {
    let [how, rest @ ..] = data else { return };
    let line = match (how, std::str::from_utf8(rest)) {
        (0, Ok(text)) => text.to_owned(),
        (0, Err(_)) => return,
        _ => invitation::line_of(rest.to_vec()),
    };
    let read = match line.parse::<Invitation>() {
        Ok(read) => read,
        Err(error) => return assert!(error.to_string().len() < 200),
    };
    assert!(!read.trackers.is_empty() && read.trackers.len() <= invitation::MAX_TRACKERS);
    let written = read.to_string();
    assert_eq!(written.parse(), Ok(read.clone()));
    assert!(!format!("{read:?}").contains(&written), "the secret is not shown");
}

/// What would be signed.
pub(crate) fn membership(data: &[u8]) {
    let authority = authority();
    if let Some(unsigned) = SignedMembership::from_bytes(data) {
        let now = unsigned.claim().map_or(0, |claim| claim.from);
        assert!(unsigned.verify(authority.key(), now).is_err(), "nobody signed it");
    }
    let signature = authority.sign(membership::CONTEXT, data);
    let Some(signed) = SignedMembership::from_bytes(&[data, signature.as_bytes()].concat()) else { return };
    let Ok(claim) = signed.claim() else {
        return assert!(signed.verify(authority.key(), 0).is_err());
    };
    assert_eq!(claim.body(), data);
    for now in [0, claim.from, claim.until, claim.from.saturating_add(LIFE_MS), u64::MAX] {
        assert_eq!(signed.verify(authority.key(), now).err(), claim.check_time(now).err());
    }
}

/// What would be signed.
pub(crate) fn revocations(data: &[u8]) {
    let authority = authority();
    assert!(RevocationPage::verify(data, authority.key()).is_err(), "nobody signed it");
    let signature = authority.sign(revocations::CONTEXT, data);
    let Ok(page) = RevocationPage::verify(&[data, signature.as_bytes()].concat(), authority.key()) else {
        return;
    };
    assert_eq!(page.body(), data);
    let mut list = Revocations::default();
    if list.add(&page) != Ok(true) {
        return assert!(list.is_empty() && list.version() == 0);
    }
    assert!(page.revocations().iter().all(|revocation| list.contains(&revocation.peer)));
    let mut again = Revocations::default();
    for page in list.pages(u64::MAX) {
        assert_eq!(again.add(&page), Ok(true));
    }
    assert_eq!(again, list);
    list.forget(u64::MAX);
    assert_eq!(list.version(), page.version());
}
