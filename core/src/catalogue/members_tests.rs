//! Members, invitations, revocations and reserved names over the storage in memory, with several trackers on one database.

use std::sync::Arc;

use futures::future::join_all;

use super::error::CatalogueError;
use super::layout::{AUTHORITY, INVITATIONS, MEMBERS, REVOKED};
use super::leases::LeaseRules;
use super::peers::Session;
use super::{Catalogue, CatalogueRules};
use crate::model::id::{FileId, PeerId};
use crate::model::record::{FileKind, Publication};
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Memory;
use crate::storage::value::{KeyRange, Space};
use crate::swarm::invitation::Secret;
use crate::swarm::membership::Rights;
use crate::swarm::revocations::{LISTED_MS, MAX_REVOKED};

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
    assert!(other.revoke(&peer(1), NOW).await.unwrap());
    assert!(!catalogue.revoke(&peer(1), NOW).await.unwrap(), "it is out already");
    let list = catalogue.revocations(NOW).await.unwrap();
    // The time, so that a database that was set back tells of newer lists than before.
    assert_eq!((list.version(), list.peers()), (NOW, &[peer(1)][..]));
    let renewed = other.renew(before.id, NOW).await;
    assert!(matches!(renewed, Err(CatalogueError::Unauthorized)), "{renewed:?}");
    let again = catalogue.join(peer(1), secret.hash(), NOW).await;
    assert!(matches!(again, Err(CatalogueError::Revoked)), "{again:?}");
    assert!(matches!(catalogue.revoke(&peer(9), NOW).await, Err(CatalogueError::NotFound { .. })));
    catalogue.sweep_revocations(NOW + LISTED_MS - 1).await.unwrap();
    assert_eq!(entries(&*storage, REVOKED).await, 1);
    catalogue.sweep_revocations(NOW + LISTED_MS).await.unwrap();
    assert_eq!(entries(&*storage, REVOKED).await, 0);
    let again = catalogue.join(peer(1), secret.hash(), NOW).await;
    assert!(matches!(again, Err(CatalogueError::Revoked)), "{again:?}");
    assert_eq!(
        catalogue.revocations(NOW + LISTED_MS).await.unwrap().version(),
        NOW,
        "the list never goes back"
    );
}

#[tokio::test]
async fn no_more_are_thrown_out_than_peers_can_be_told_of() {
    let storage = Arc::new(Memory::new());
    let catalogue = open(&storage).await;
    let secret = invited(&catalogue, Rights::Full, 2000).await;
    for n in 0..=MAX_REVOKED as u64 {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    for n in 0..MAX_REVOKED as u64 {
        catalogue.revoke(&peer(n), NOW).await.unwrap();
    }
    let last = peer(MAX_REVOKED as u64);
    assert!(matches!(catalogue.revoke(&last, NOW).await, Err(CatalogueError::TooManyRevoked)));
    catalogue.revoke(&last, NOW + LISTED_MS).await.unwrap();
    assert_eq!(catalogue.revocations(NOW + LISTED_MS).await.unwrap().peers(), [last]);
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
