//! Fuzz targets for invitations, memberships and revocation pages. Random bytes do not pass a checksum or a signature, so the
//! targets append valid ones. The result is input that a faulty tracker could send.

use super::authority::Authority;
use super::invitation::{self, Invitation};
use super::revocations::{self, RevocationPage, Revocations};
use enjambre_core::model::membership::{self, LIFE, SignedMembership};
use enjambre_core::{KeyPair, UnixMillis};

fn authority() -> Authority {
    Authority::new(KeyPair::from_secret(&[1; 32]))
}

/// After a byte 0, the line itself; otherwise the body of a line, to which the checksum is added.
pub(crate) fn invitation(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    let line = match (mode, std::str::from_utf8(rest)) {
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

/// The signed part of a membership.
pub(crate) fn membership(data: &[u8]) {
    let authority = authority();
    if let Some(unsigned) = SignedMembership::from_bytes(data) {
        let now = unsigned.claim().map_or(UnixMillis(0), |claim| claim.from);
        assert!(unsigned.verify(authority.key(), now).is_err(), "it is not signed");
    }
    let signature = authority.sign(membership::CONTEXT, data);
    let Some(signed) = SignedMembership::from_bytes(&[data, signature.as_bytes()].concat()) else { return };
    let Ok(claim) = signed.claim() else {
        return assert!(signed.verify(authority.key(), UnixMillis(0)).is_err());
    };
    assert_eq!(claim.body(), data);
    for now in [UnixMillis(0), claim.from, claim.until, claim.from + LIFE, UnixMillis(u64::MAX)] {
        assert_eq!(signed.verify(authority.key(), now).err(), claim.check_time(now).err());
    }
}

/// The signed part of a revocation page.
pub(crate) fn revocations(data: &[u8]) {
    let authority = authority();
    assert!(RevocationPage::verify(data, authority.key()).is_err(), "it is not signed");
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
    let mut copy = Revocations::default();
    for page in list.pages(UnixMillis(u64::MAX)) {
        assert_eq!(copy.add(&page), Ok(true));
    }
    assert_eq!(copy, list);
    list.expire(UnixMillis(u64::MAX));
    assert_eq!(list.version(), page.version());
}
