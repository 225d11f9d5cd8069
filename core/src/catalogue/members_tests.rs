//! Members, invitations, revocations and reserved names over the storage in memory, with several trackers on one database.

use std::sync::Arc;

use futures::future::join_all;

use super::error::CatalogueError;
use super::layout::{self, AUTHORITY, INVITATIONS, MEMBERS, MemberRecord, RECORD, REVOKED};
use super::leases::LeaseRules;
use super::members::OpenInvitation;
use super::peers::Session;
use super::revocations::Revoked;
use super::{Catalogue, CatalogueRules};
use crate::model::id::{FileId, PeerId};
use crate::model::record::{FileKind, Publication};
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Durability, KeyRange, Space};
use crate::swarm::invitation::Secret;
use crate::swarm::membership::{LIFE_MS, Rights};
use crate::swarm::revocations::{LISTED_MS, MAX_REVOKED, PAGE, Revocations};

const NOW: u64 = 2_000_000_000_000;
const HOUR: u64 = 3_600_000;
const RULES: CatalogueRules = CatalogueRules {
    leases: LeaseRules { lease: 30_000, retention: 1_000_000, settle: 120_000 },
    fresh: 5000,
    max_peers: 10_000,
    max_versions: 1_000_000,
    cache: 1 << 20,
};

async fn open(storage: &Arc<Memory>) -> Catalogue {
    Catalogue::open(Arc::clone(storage) as Arc<dyn Storage>, RULES, NOW).await.unwrap()
}

fn peer(n: u64) -> PeerId {
    PeerId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

async fn entries(storage: &dyn Storage, space: Space) -> usize {
    storage.scan(space, KeyRange::all(), 10_000).await.unwrap().len()
}

async fn invited(catalogue: &Catalogue, rights: Rights, uses: u32) -> Secret {
    let secret = Secret::generate();
    catalogue.invite(secret.hash(), rights, uses, NOW + HOUR, NOW).await.unwrap();
    secret
}

async fn session(catalogue: &Catalogue, peer: PeerId) -> Session {
    let at = "tcp://10.0.0.1:7711".parse().unwrap();
    let id = catalogue.hello(peer, vec![at], NOW).await.unwrap();
    catalogue.authorize(id, NOW).await.unwrap()
}

fn publication(n: u8) -> Publication {
    let id = FileId::from_bytes([n; 32]);
    Publication { name: "name".parse().unwrap(), id, size: 5, kind: FileKind::File }
}

#[tokio::test]
async fn all_trackers_on_a_database_have_one_authority_whoever_comes_first() {
    let storage = Arc::new(Memory::new());
    let catalogues = join_all((0..5).map(|_| open(&storage))).await;
    let keys = join_all(catalogues.iter().map(async |each| *each.authority().await.unwrap().key())).await;
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_eq!(*open(&storage).await.authority().await.unwrap().key(), keys[0], "also later");
    assert_eq!(entries(&*storage, AUTHORITY).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_invitation_for_some_lets_in_exactly_so_many_from_everywhere_at_once() {
    for uses in [1, 3] {
        let storage = Arc::new(Memory::new());
        let trackers = Arc::new([open(&storage).await, open(&storage).await]);
        let secret = invited(&trackers[0], Rights::Full, uses).await;
        let tasks = (0..20_u64).map(|n| {
            let trackers = Arc::clone(&trackers);
            // Each asks both, as after an answer that was lost.
            tokio::spawn(async move {
                let first = trackers[n as usize % 2].join(peer(n), secret.hash(), NOW).await;
                let again = trackers[(n as usize + 1) % 2].join(peer(n), secret.hash(), NOW).await;
                assert_eq!(first.is_ok(), again.is_ok(), "{first:?} {again:?}");
                first.is_ok()
            })
        });
        let admitted = join_all(tasks).await.into_iter().filter(|joined| *joined.as_ref().unwrap()).count();
        assert_eq!(admitted, uses as usize);
        assert_eq!(entries(&*storage, MEMBERS).await, uses as usize);
        assert_eq!(entries(&*storage, INVITATIONS).await, 0, "it is used up");
    }
}

#[tokio::test]
async fn a_join_of_which_the_outcome_is_not_known_uses_one_up_and_no_more() {
    for applied in [true, false] {
        let memory = Arc::new(Memory::new());
        let faulty = Arc::new(FaultyStorage::new(memory.clone(), 1));
        let catalogue = Catalogue::open(faulty.clone() as Arc<dyn Storage>, RULES, NOW).await.unwrap();
        let secret = invited(&catalogue, Rights::Full, 2).await;
        faulty.add(Operation::Commit, When::Nth(1), Fault::Indeterminate { applied });
        catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
        catalogue.join(peer(2), secret.hash(), NOW).await.unwrap();
        assert!(matches!(
            catalogue.join(peer(3), secret.hash(), NOW).await,
            Err(CatalogueError::NoInvitation)
        ));
    }
}

#[tokio::test]
async fn who_is_in_already_makes_the_database_write_only_by_what_let_it_in() {
    let faulty = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let catalogue = Catalogue::open(faulty.clone() as Arc<dyn Storage>, RULES, NOW).await.unwrap();
    let (secret, other) =
        (invited(&catalogue, Rights::Full, 2).await, invited(&catalogue, Rights::Full, 2).await);
    catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    for operation in [Operation::Sync, Operation::Commit] {
        faulty.add(operation, When::Always, Fault::Unavailable);
    }
    for secret in [Secret::generate(), other] {
        catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    }
    // It may have been told that the outcome is not known, and asks again.
    catalogue.join(peer(1), secret.hash(), NOW).await.unwrap_err();
}

#[tokio::test]
async fn invitations_end_and_are_taken_away_then() {
    let storage = Arc::new(Memory::new());
    let catalogue = open(&storage).await;
    let secret = invited(&catalogue, Rights::Full, 2).await;
    catalogue.join(peer(1), secret.hash(), NOW + HOUR - 1).await.unwrap();
    let late = catalogue.join(peer(2), secret.hash(), NOW + HOUR).await;
    assert!(matches!(late, Err(CatalogueError::NoInvitation)), "{late:?}");
    assert!(matches!(
        catalogue.join(peer(2), Secret::generate().hash(), NOW).await,
        Err(CatalogueError::NoInvitation)
    ));
    catalogue.sweep_invitations(NOW + HOUR - 1).await.unwrap();
    assert_eq!(entries(&*storage, INVITATIONS).await, 1);
    catalogue.sweep_invitations(NOW + HOUR).await.unwrap();
    assert_eq!(entries(&*storage, INVITATIONS).await, 0);
    catalogue.join(peer(1), secret.hash(), NOW + 2 * HOUR).await.expect("it is in already");
}

#[tokio::test]
async fn rights_grow_with_another_invitation_and_never_shrink() {
    let catalogue = open(&Arc::new(Memory::new())).await;
    let reading = invited(&catalogue, Rights::ReadOnly, 2).await;
    let full = invited(&catalogue, Rights::Full, 1).await;
    let rights = async |secret: Secret| catalogue.join(peer(1), secret.hash(), NOW).await.unwrap().rights;
    assert_eq!(rights(reading).await, Rights::ReadOnly);
    assert_eq!(rights(full).await, Rights::Full);
    assert_eq!(rights(reading).await, Rights::Full);
    catalogue.join(peer(2), reading.hash(), NOW).await.expect("the second use is still there");
    assert!(
        catalogue.join(peer(2), full.hash(), NOW).await.is_ok_and(|member| member.rights == Rights::ReadOnly)
    );
}

#[tokio::test]
async fn who_is_thrown_out_is_on_the_list_for_a_day_has_no_session_and_never_comes_back() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let secret = invited(&catalogue, Rights::Full, 5).await;
    catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    catalogue.join(peer(2), secret.hash(), NOW).await.unwrap();
    let before = session(&catalogue, peer(1)).await;
    assert_eq!(catalogue.revocations(NOW).await.unwrap().version(), 0);
    assert!(other.revoke(&peer(1), NOW).await.unwrap().new);
    assert!(!catalogue.revoke(&peer(1), NOW).await.unwrap().new, "it is out already");
    let list = catalogue.revocations(NOW).await.unwrap();
    // The time, so that a database that was set back tells of newer lists than before.
    assert_eq!((list.version(), list.len(), list.contains(&peer(1))), (NOW, 1, true));
    let renewed = other.renew(before.id, NOW).await;
    assert!(matches!(renewed, Err(CatalogueError::Unauthorized)), "{renewed:?}");
    let another = invited(&catalogue, Rights::Full, 5).await;
    for secret in [secret, another] {
        let again = catalogue.join(peer(1), secret.hash(), NOW).await;
        assert!(matches!(again, Err(CatalogueError::Revoked)), "{again:?}");
    }
    assert!(matches!(catalogue.revoke(&peer(9), NOW).await, Err(CatalogueError::NotFound { .. })));
    catalogue.sweep_revocations(NOW + LISTED_MS - 1).await.unwrap();
    assert_eq!(entries(&*storage, REVOKED).await, 1);
    catalogue.sweep_revocations(NOW + LISTED_MS).await.unwrap();
    assert_eq!(entries(&*storage, REVOKED).await, 0);
    let again = catalogue.join(peer(1), another.hash(), NOW).await;
    assert!(matches!(again, Err(CatalogueError::Revoked)), "{again:?}");
    assert_eq!(
        catalogue.revocations(NOW + LISTED_MS).await.unwrap().version(),
        NOW,
        "the list never goes back"
    );
}

#[tokio::test]
async fn who_is_thrown_out_is_not_in_again_with_another_key_by_what_it_came_by() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let reading = invited(&catalogue, Rights::ReadOnly, 3).await;
    let full = invited(&catalogue, Rights::Full, 3).await;
    let elsewhere = invited(&catalogue, Rights::Full, 1).await;
    for secret in [reading, full] {
        catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    }
    catalogue.join(peer(2), full.hash(), NOW).await.unwrap();
    let member = catalogue.member(&peer(1)).await.unwrap().unwrap();
    assert_eq!(member.invitations, [reading.hash(), full.hash()]);
    let cancelled = other.revoke(&peer(1), NOW).await.unwrap().cancelled;
    let left: Vec<_> = cancelled.iter().map(|invitation| (invitation.id, invitation.uses)).collect();
    assert_eq!(left, [(reading.hash(), 2), (full.hash(), 1)]);
    for secret in [reading, full] {
        let again = catalogue.join(peer(3), secret.hash(), NOW).await;
        assert!(matches!(again, Err(CatalogueError::NoInvitation)), "{again:?}");
    }
    catalogue.join(peer(3), elsewhere.hash(), NOW).await.expect("the others are as they were");
    assert_eq!(catalogue.member(&peer(2)).await.unwrap().unwrap().revoked, None, "who came by it stays");
    // By then it is used up and there is nothing to cancel.
    assert_eq!(catalogue.revoke(&peer(3), NOW).await.unwrap().cancelled, []);
}

#[tokio::test]
async fn throwing_out_with_an_outcome_that_is_not_known_is_told_like_any_other() {
    for applied in [true, false] {
        let faulty = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
        let catalogue = Catalogue::open(faulty.clone() as Arc<dyn Storage>, RULES, NOW).await.unwrap();
        let secret = invited(&catalogue, Rights::Full, 3).await;
        catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
        faulty.add(Operation::Commit, When::Nth(1), Fault::Indeterminate { applied });
        let revoked = catalogue.revoke(&peer(1), NOW).await.unwrap();
        assert!(revoked.new && !revoked.came_unnoted && !revoked.ahead);
        let cancelled: Vec<_> = revoked.cancelled.iter().map(|invitation| invitation.id).collect();
        assert_eq!(cancelled, [secret.hash()]);
        assert_eq!(catalogue.revoke(&peer(1), NOW).await.unwrap(), Revoked::default());
    }
}

#[tokio::test]
async fn who_is_out_already_leaves_no_invitation_behind_and_who_came_unnoted_is_told_of() {
    let storage = Arc::new(Memory::new());
    let catalogue = open(&storage).await;
    let secret = invited(&catalogue, Rights::Full, 3).await;
    let member = |revoked, invitations| {
        let member = MemberRecord { v: RECORD, rights: Rights::Full, joined: NOW, revoked, invitations };
        layout::encode(&member)
    };
    let mut batch = Batch::new();
    batch.put(MEMBERS, layout::peer_id_key(&peer(1)), member(Some(NOW), vec![secret.hash()]));
    batch.put(MEMBERS, layout::peer_id_key(&peer(2)), member(None, Vec::new()));
    storage.commit(batch, Durability::Durable).await.unwrap();
    let revoked = catalogue.revoke(&peer(1), NOW).await.unwrap();
    assert_eq!((revoked.new, revoked.came_unnoted, revoked.cancelled.len()), (false, false, 1));
    assert_eq!(entries(&*storage, INVITATIONS).await, 0);
    let revoked = catalogue.revoke(&peer(2), NOW).await.unwrap();
    assert_eq!((revoked.new, revoked.came_unnoted, revoked.cancelled.len()), (true, true, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_comes_in_while_somebody_is_thrown_out_was_before_it_or_is_not_in() {
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
        let before = 9 - revoked.cancelled[0].uses as usize;
        let joined = join_all(joins).await.into_iter().filter(|joined| *joined.as_ref().unwrap()).count();
        assert_eq!(joined, before);
        assert_eq!(entries(&*storage, INVITATIONS).await, 0);
    }
}

#[tokio::test]
async fn invitations_are_listed_found_by_their_first_digits_and_cancelled() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let mut secrets = Vec::new();
    for uses in 1..=600 {
        secrets.push((invited(&catalogue, Rights::ReadOnly, uses).await.hash(), uses));
    }
    secrets.sort_unstable_by_key(|(id, _)| id.0);
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = other.invitations(after.as_ref(), NOW).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        listed.extend(page);
    }
    assert!(listed.iter().map(|invitation| (invitation.id, invitation.uses)).eq(secrets.iter().copied()));
    let OpenInvitation { id, rights, until, made, .. } = listed[7];
    assert_eq!((rights, until, made), (Rights::ReadOnly, NOW + HOUR, NOW));
    assert_eq!(other.invitations_beginning(&id.to_string()[..16]).await.unwrap(), [id]);
    assert!(other.cancel_invitation(id).await.unwrap());
    assert!(!catalogue.cancel_invitation(id).await.unwrap(), "it is cancelled already");
    assert_eq!(other.invitations_beginning(&id.to_string()).await.unwrap(), []);
    let late = catalogue.join(peer(1), id, NOW).await;
    assert!(matches!(late, Err(CatalogueError::NoInvitation)), "{late:?}");
}

#[tokio::test]
async fn everybody_who_is_thrown_out_has_a_version_whoever_does_it_and_however_many_there_are() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let secret = invited(&catalogue, Rights::Full, 2000).await;
    let count = PAGE as u64 + 50;
    for n in 0..count {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    for n in 0..count {
        // At the same time, and by a clock that is late.
        let by = if n % 2 == 0 { &catalogue } else { &other };
        by.revoke(&peer(n), NOW - n % 2).await.unwrap();
    }
    let list = other.revocations(NOW).await.unwrap();
    assert_eq!((list.len() as u64, list.version()), (count, NOW + count - 1));
    let pages = list.pages(u64::MAX);
    assert_eq!(pages.len(), 2);
    let mut told = Revocations::default();
    for page in &pages {
        told.add(page).unwrap();
    }
    assert_eq!(told, list);
}

#[tokio::test]
async fn who_throws_out_many_reads_the_list_once_and_sees_what_others_do() {
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
    assert_eq!(catalogue.revocations(NOW + LISTED_MS + 4).await.unwrap().len(), 5, "the others are over");
    faulty.clear();
    open(&memory).await.revoke(&peer(10), NOW).await.unwrap();
    let list = catalogue.revocations(NOW).await.unwrap();
    assert_eq!((list.len(), list.contains(&peer(10))), (11, true));
}

#[tokio::test]
async fn a_list_of_the_future_is_told_of() {
    let catalogue = open(&Arc::new(Memory::new())).await;
    let secret = invited(&catalogue, Rights::Full, 4).await;
    for n in 0..4 {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    let later = NOW + LIFE_MS;
    for (n, at, ahead) in [(0, later, false), (1, NOW, true), (2, later, false), (3, later + HOUR, false)] {
        assert_eq!(catalogue.revoke(&peer(n), at).await.unwrap().ahead, ahead, "{n}");
    }
}

#[tokio::test]
async fn no_more_are_thrown_out_than_peers_keep_and_that_is_said() {
    let storage = Arc::new(Memory::new());
    let catalogue = open(&storage).await;
    let secret = invited(&catalogue, Rights::Full, 1).await;
    catalogue.join(peer(1), secret.hash(), NOW).await.unwrap();
    for first in (0..MAX_REVOKED as u64).step_by(1000) {
        let mut batch = Batch::new();
        for n in first..first + 1000 {
            batch.put(REVOKED, layout::peer_id_key(&peer(1_000_000 + n)), layout::number(NOW - n));
        }
        storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    let refused = catalogue.revoke(&peer(1), NOW).await.unwrap_err();
    assert!(matches!(refused, CatalogueError::TooManyRevoked), "{refused}");
    assert!(refused.to_string().contains("another authority"), "{refused}");
    assert_eq!(catalogue.member(&peer(1)).await.unwrap().unwrap().revoked, None);
    let later = NOW + LISTED_MS - MAX_REVOKED as u64 + 1;
    catalogue.revoke(&peer(1), later).await.expect("once one of them is off the list");
}

#[tokio::test]
async fn members_are_listed_with_how_they_do_and_found_by_their_first_digits() {
    let catalogue = open(&Arc::new(Memory::new())).await;
    let secret = invited(&catalogue, Rights::ReadOnly, 3).await;
    for n in 1..=3 {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    session(&catalogue, peer(1)).await;
    session(&catalogue, peer(2)).await;
    catalogue.revoke(&peer(2), NOW + 1).await.unwrap();
    let members = catalogue.members(None, NOW + 2).await.unwrap();
    let of = |n| members.iter().find(|member| member.peer == peer(n)).unwrap();
    assert_eq!((members.len(), of(1).rights, of(1).joined), (3, Rights::ReadOnly, NOW));
    assert_eq!((of(1).alive, of(1).seen, of(1).revoked), (true, Some(NOW), None));
    assert_eq!((of(2).alive, of(2).revoked), (false, Some(NOW + 1)));
    assert_eq!((of(3).alive, of(3).seen), (false, None));
    assert!(catalogue.members(Some(&members[2].peer), NOW).await.unwrap().is_empty());
    let digits = &peer(3).to_string()[..8];
    assert_eq!(catalogue.peers_beginning(digits).await.unwrap(), [peer(3)]);
    assert!(catalogue.peers_beginning("0").await.unwrap().len() <= 2);
}

#[tokio::test]
async fn a_reserved_name_is_published_by_its_peer_alone() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let (owner, stranger) = (session(&catalogue, peer(1)).await, session(&other, peer(2)).await);
    let name = "name".parse().unwrap();
    catalogue.reserve(&name, peer(1), NOW).await.unwrap();
    let refused = other.publish(&stranger, &publication(1), NOW).await;
    assert!(matches!(refused, Err(CatalogueError::NameReserved { by, .. }) if by == peer(1)), "{refused:?}");
    assert_eq!(catalogue.publish(&owner, &publication(1), NOW).await.unwrap().version, 1);
    assert_eq!(catalogue.publish(&owner, &publication(2), NOW).await.unwrap().version, 2);
    assert!(other.publish(&stranger, &publication(2), NOW).await.is_err(), "not even what it is already");
    assert!(catalogue.release(&name).await.unwrap());
    assert!(!catalogue.release(&name).await.unwrap());
    assert_eq!(other.publish(&stranger, &publication(3), NOW).await.unwrap().version, 3);
}
