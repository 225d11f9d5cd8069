use super::ms;
use std::sync::Arc;

use futures::future::join_all;

use super::Catalogue;
use super::members::{HOUR, NOW, RULES, entries, invited, open, peer, session};
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::{self, INVITATIONS, MEMBERS, MemberRecord, REVOKED};
use crate::catalogue::revocations::RevokeOutcome;
use crate::membership::credentials::revocations::{LISTED, MAX_REVOKED, PAGE, Revocations};
use enjambre_core::model::membership::{LIFE, Rights};
use enjambre_core::{Batch, Durability, Memory, Storage, UnixMillis};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

#[tokio::test]
async fn revoked_member_is_listed_for_a_day_and_never_rejoins() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let secret = invited(&catalogue, Rights::Full, 5).await;
    catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    catalogue.join(peer(2), secret.hash(), NOW).await.unwrap();
    let before = session(&catalogue, peer(1)).await;
    assert_eq!(catalogue.revocations(NOW).await.unwrap().version(), 0);
    assert!(other.revoke(&peer(1), NOW).await.unwrap().new);
    assert!(!catalogue.revoke(&peer(1), NOW).await.unwrap().new, "it is revoked already");
    let list = catalogue.revocations(NOW).await.unwrap();
    // Versions follow the time, so that a restored backup still leads to newer versions.
    assert_eq!((list.version(), list.len(), list.contains(&peer(1))), (NOW.get(), 1, true));
    let renewed = other.renew(before.id, NOW).await;
    assert!(matches!(renewed, Err(CatalogueError::Unauthorized)), "{renewed:?}");
    let another = invited(&catalogue, Rights::Full, 5).await;
    for secret in [secret, another] {
        let again = catalogue.join(peer(1), secret.hash(), NOW).await;
        assert!(matches!(again, Err(CatalogueError::Revoked)), "{again:?}");
    }
    assert!(matches!(catalogue.revoke(&peer(9), NOW).await, Err(CatalogueError::NotFound { .. })));
    catalogue.sweep_revocations(NOW + LISTED - ms(1)).await.unwrap();
    assert_eq!(entries(&*storage, REVOKED).await, 1);
    catalogue.sweep_revocations(NOW + LISTED).await.unwrap();
    assert_eq!(entries(&*storage, REVOKED).await, 0);
    let again = catalogue.join(peer(1), another.hash(), NOW).await;
    assert!(matches!(again, Err(CatalogueError::Revoked)), "{again:?}");
    assert_eq!(
        catalogue.revocations(NOW + LISTED).await.unwrap().version(),
        NOW.get(),
        "the version never decreases"
    );
}

#[tokio::test]
async fn revocation_cancels_the_invitations_of_the_member() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let reading = invited(&catalogue, Rights::ReadOnly, 3).await;
    let full = invited(&catalogue, Rights::Full, 3).await;
    let unrelated = invited(&catalogue, Rights::Full, 1).await;
    for secret in [reading, full] {
        catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    }
    catalogue.join(peer(2), full.hash(), NOW).await.unwrap();
    let member = catalogue.member(&peer(1)).await.unwrap().unwrap();
    assert_eq!(member.invitations, [reading.hash(), full.hash()]);
    let cancelled = other.revoke(&peer(1), NOW).await.unwrap().cancelled;
    let left: Vec<_> = cancelled.iter().map(|(id, record)| (*id, record.uses)).collect();
    assert_eq!(left, [(reading.hash(), 2), (full.hash(), 1)]);
    for secret in [reading, full] {
        let again = catalogue.join(peer(3), secret.hash(), NOW).await;
        assert!(matches!(again, Err(CatalogueError::NoInvitation)), "{again:?}");
    }
    catalogue.join(peer(3), unrelated.hash(), NOW).await.expect("other invitations are unchanged");
    assert_eq!(
        catalogue.member(&peer(2)).await.unwrap().unwrap().revoked,
        None,
        "other members with it remain"
    );
    // Its invitation is used up, so there is none to cancel.
    assert_eq!(catalogue.revoke(&peer(3), NOW).await.unwrap().cancelled, []);
}

#[tokio::test]
async fn revoke_with_unknown_outcome_reports_its_result() {
    for applied in [true, false] {
        let faulty = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
        let catalogue = Catalogue::open(faulty.clone() as Arc<dyn Storage>, RULES, NOW).await.unwrap();
        let secret = invited(&catalogue, Rights::Full, 3).await;
        catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
        faulty.add(Operation::Commit, When::Nth(1), Fault::Indeterminate { applied });
        let revoked = catalogue.revoke(&peer(1), NOW).await.unwrap();
        assert!(revoked.new && !revoked.ahead);
        let cancelled: Vec<_> = revoked.cancelled.iter().map(|(id, _)| *id).collect();
        assert_eq!(cancelled, [secret.hash()]);
        assert_eq!(catalogue.revoke(&peer(1), NOW).await.unwrap(), RevokeOutcome::default());
    }
}

#[tokio::test]
async fn revoking_a_revoked_member_cancels_its_invitation() {
    let storage = Arc::new(Memory::new());
    let catalogue = open(&storage).await;
    let secret = invited(&catalogue, Rights::Full, 3).await;
    let (joined, revoked, invitations) = (NOW, Some(NOW), vec![secret.hash()]);
    let member = MemberRecord { rights: Rights::Full, joined, revoked, invitations };
    let mut batch = Batch::new();
    batch.put(MEMBERS, layout::peer_id_key(&peer(1)), layout::encode(&member));
    storage.commit(batch, Durability::Durable).await.unwrap();
    let revoked = catalogue.revoke(&peer(1), NOW).await.unwrap();
    assert_eq!((revoked.new, revoked.cancelled.len()), (false, 1));
    assert_eq!(entries(&*storage, INVITATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn join_during_revocation_precedes_it_or_fails() {
    for round in 0..20 {
        let storage = Arc::new(Memory::new());
        let trackers = Arc::new([open(&storage).await, open(&storage).await]);
        let secret = invited(&trackers[0], Rights::Full, 10).await;
        trackers[0].join(peer(0), secret.hash(), NOW).await.unwrap();
        let joins = (1..5_u64).map(|n| {
            let trackers = Arc::clone(&trackers);
            tokio::spawn(
                async move { trackers[n as usize % 2].join(peer(n), secret.hash(), NOW).await.is_ok() },
            )
        });
        let joins: Vec<_> = joins.collect();
        let revoked = trackers[round % 2].revoke(&peer(0), NOW).await.unwrap();
        let before = 9 - revoked.cancelled[0].1.uses as usize;
        let joined = join_all(joins).await.into_iter().filter(|joined| *joined.as_ref().unwrap()).count();
        assert_eq!(joined, before);
        assert_eq!(entries(&*storage, INVITATIONS).await, 0);
    }
}

#[tokio::test]
async fn each_revocation_has_its_own_version() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let secret = invited(&catalogue, Rights::Full, 2000).await;
    let count = PAGE as u64 + 50;
    for n in 0..count {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    for n in 0..count {
        // With the same time, and with a clock that is behind.
        let by = if n % 2 == 0 { &catalogue } else { &other };
        by.revoke(&peer(n), NOW - ms(n % 2)).await.unwrap();
    }
    let list = other.revocations(NOW).await.unwrap();
    assert_eq!((list.len() as u64, list.version()), (count, NOW.get() + count - 1));
    let pages = list.pages(UnixMillis(u64::MAX));
    assert_eq!(pages.len(), 2);
    let mut received = Revocations::default();
    for page in &pages {
        received.add(page).unwrap();
    }
    assert_eq!(received, list);
}

#[tokio::test]
async fn many_revocations_read_the_list_once() {
    let memory = Arc::new(Memory::new());
    let faulty = Arc::new(FaultyStorage::new(memory.clone(), 1));
    let catalogue = Catalogue::open(faulty.clone() as Arc<dyn Storage>, RULES, NOW).await.unwrap();
    let secret = invited(&catalogue, Rights::Full, 20).await;
    for n in 0..20 {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    catalogue.revoke(&peer(0), NOW).await.unwrap();
    faulty.add(Operation::Scan, When::Always, Fault::Unavailable);
    for n in 1..10 {
        catalogue.revoke(&peer(n), NOW).await.unwrap();
        assert_eq!(catalogue.revocations(NOW).await.unwrap().len() as u64, n + 1);
    }
    assert_eq!(
        catalogue.revocations(NOW + LISTED + ms(4)).await.unwrap().len(),
        5,
        "the others have expired"
    );
    faulty.clear();
    open(&memory).await.revoke(&peer(10), NOW).await.unwrap();
    let list = catalogue.revocations(NOW).await.unwrap();
    assert_eq!((list.len(), list.contains(&peer(10))), (11, true));
}

#[tokio::test]
async fn revocation_list_ahead_of_the_clock_is_reported() {
    let catalogue = open(&Arc::new(Memory::new())).await;
    let secret = invited(&catalogue, Rights::Full, 4).await;
    for n in 0..4 {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    let later = NOW + LIFE;
    for (n, at, ahead) in [(0, later, false), (1, NOW, true), (2, later, false), (3, later + HOUR, false)] {
        assert_eq!(catalogue.revoke(&peer(n), at).await.unwrap().ahead, ahead, "{n}");
    }
}

#[tokio::test]
async fn revocations_beyond_the_limit_are_rejected() {
    let storage = Arc::new(Memory::new());
    let catalogue = open(&storage).await;
    let secret = invited(&catalogue, Rights::Full, 1).await;
    catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    for first in (0..MAX_REVOKED as u64).step_by(1000) {
        let mut batch = Batch::new();
        for n in first..first + 1000 {
            batch.put(REVOKED, layout::peer_id_key(&peer(1_000_000 + n)), layout::number(NOW.get() - n));
        }
        storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    let refused = catalogue.revoke(&peer(1), NOW).await.unwrap_err();
    assert!(matches!(refused, CatalogueError::TooManyRevoked), "{refused}");
    assert!(refused.to_string().contains("another authority"), "{refused}");
    assert_eq!(catalogue.member(&peer(1)).await.unwrap().unwrap().revoked, None);
    let later = NOW + LISTED - ms(MAX_REVOKED as u64 - 1);
    catalogue.revoke(&peer(1), later).await.expect("after one of them expired");
}
