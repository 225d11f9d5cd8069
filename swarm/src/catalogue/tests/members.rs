use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::{Catalogue, CatalogueRules, RULES as DEFAULT_RULES, ms};
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::InvitationRecord;
use crate::catalogue::layout::{AUTHORITY, INVITATIONS, MEMBERS};
use crate::catalogue::peers::Session;
use enjambre_core::model::membership::Rights;
use enjambre_core::model::secret::Secret;
use enjambre_core::{FileId, FileKind, KeyRange, Memory, PeerId, Publication, Space, Storage, UnixMillis};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

pub(super) const NOW: UnixMillis = UnixMillis(2_000_000_000_000);
pub(super) const HOUR: Duration = ms(3_600_000);
pub(super) const RULES: CatalogueRules = CatalogueRules { max_peers: 10_000, ..DEFAULT_RULES };

pub(super) async fn open(storage: &Arc<Memory>) -> Catalogue {
    Catalogue::open(Arc::clone(storage) as Arc<dyn Storage>, RULES, NOW).await.unwrap()
}

pub(super) fn peer(n: u64) -> PeerId {
    PeerId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

pub(super) async fn entries(storage: &dyn Storage, space: Space) -> usize {
    storage.scan(space, KeyRange::all(), 10_000).await.unwrap().len()
}

pub(super) async fn invited(catalogue: &Catalogue, rights: Rights, uses: u32) -> Secret {
    let secret = Secret::generate();
    catalogue.invite(secret.hash(), rights, uses, NOW + HOUR, NOW).await.unwrap();
    secret
}

pub(super) async fn session(catalogue: &Catalogue, peer: PeerId) -> Session {
    let at = "tcp://10.0.0.1:7711".parse().unwrap();
    let id = catalogue.open_session(peer, vec![at], NOW).await.unwrap();
    catalogue.authorize(id, NOW).await.unwrap()
}

fn publication(n: u8) -> Publication {
    let id = FileId::from_bytes([n; 32]);
    Publication { name: "name".parse().unwrap(), id, size: 5, kind: FileKind::File }
}

#[tokio::test]
async fn trackers_on_one_database_share_the_authority() {
    let storage = Arc::new(Memory::new());
    let catalogues = join_all((0..5).map(|_| open(&storage))).await;
    let keys = join_all(catalogues.iter().map(async |each| *each.authority().await.unwrap().key())).await;
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_eq!(*open(&storage).await.authority().await.unwrap().key(), keys[0], "also later");
    assert_eq!(entries(&*storage, AUTHORITY).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_joins_use_an_invitation_as_often_as_allowed() {
    for uses in [1, 3] {
        let storage = Arc::new(Memory::new());
        let trackers = Arc::new([open(&storage).await, open(&storage).await]);
        let secret = invited(&trackers[0], Rights::Full, uses).await;
        let tasks = (0..20_u64).map(|n| {
            let trackers = Arc::clone(&trackers);
            // Each peer asks both trackers, as after a lost reply.
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
async fn join_with_unknown_outcome_uses_invitation_once() {
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
async fn repeated_join_syncs_only_for_the_same_invitation() {
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
    // A repetition of the first join, whose outcome may have been unknown.
    catalogue.join(peer(1), secret.hash(), NOW).await.unwrap_err();
}

#[tokio::test]
async fn expired_invitation_is_rejected_and_swept() {
    let storage = Arc::new(Memory::new());
    let catalogue = open(&storage).await;
    let secret = invited(&catalogue, Rights::Full, 2).await;
    catalogue.join(peer(1), secret.hash(), NOW + HOUR - ms(1)).await.unwrap();
    let late = catalogue.join(peer(2), secret.hash(), NOW + HOUR).await;
    assert!(matches!(late, Err(CatalogueError::NoInvitation)), "{late:?}");
    assert!(matches!(
        catalogue.join(peer(2), Secret::generate().hash(), NOW).await,
        Err(CatalogueError::NoInvitation)
    ));
    catalogue.sweep_invitations(NOW + HOUR - ms(1)).await.unwrap();
    assert_eq!(entries(&*storage, INVITATIONS).await, 1);
    catalogue.sweep_invitations(NOW + HOUR).await.unwrap();
    assert_eq!(entries(&*storage, INVITATIONS).await, 0);
    catalogue.join(peer(1), secret.hash(), NOW + 2 * HOUR).await.expect("it is a member already");
}

#[tokio::test]
async fn second_invitation_extends_rights_only() {
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
async fn invitations_are_listed_found_and_cancelled() {
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
        after = Some(last.0);
        listed.extend(page);
    }
    assert!(listed.iter().map(|(id, record)| (*id, record.uses)).eq(secrets.iter().copied()));
    let (id, InvitationRecord { rights, until, at, .. }) = listed[7];
    assert_eq!((rights, until, at), (Rights::ReadOnly, NOW + HOUR, NOW));
    assert_eq!(other.invitations_with_prefix(&id.to_string()[..16]).await.unwrap(), [id]);
    assert!(other.cancel_invitation(id).await.unwrap());
    assert!(!catalogue.cancel_invitation(id).await.unwrap(), "it is cancelled already");
    assert_eq!(other.invitations_with_prefix(&id.to_string()).await.unwrap(), []);
    let late = catalogue.join(peer(1), id, NOW).await;
    assert!(matches!(late, Err(CatalogueError::NoInvitation)), "{late:?}");
}

#[tokio::test]
async fn members_are_listed_with_status_and_found_by_prefix() {
    let catalogue = open(&Arc::new(Memory::new())).await;
    let secret = invited(&catalogue, Rights::ReadOnly, 3).await;
    for n in 1..=3 {
        catalogue.join(peer(n), secret.hash(), NOW).await.unwrap();
    }
    session(&catalogue, peer(1)).await;
    session(&catalogue, peer(2)).await;
    catalogue.revoke(&peer(2), NOW + ms(1)).await.unwrap();
    let members = catalogue.members(None, NOW + ms(2)).await.unwrap();
    let of = |n| members.iter().find(|member| member.peer == peer(n)).unwrap();
    assert_eq!((members.len(), of(1).record.rights, of(1).record.joined), (3, Rights::ReadOnly, NOW));
    assert_eq!((of(1).alive, of(1).seen, of(1).record.revoked), (true, Some(NOW), None));
    assert_eq!((of(2).alive, of(2).record.revoked), (false, Some(NOW + ms(1))));
    assert_eq!((of(3).alive, of(3).seen), (false, None));
    assert!(catalogue.members(Some(&members[2].peer), NOW).await.unwrap().is_empty());
    let digits = &peer(3).to_string()[..8];
    assert_eq!(catalogue.peers_with_prefix(digits).await.unwrap(), [peer(3)]);
    assert!(catalogue.peers_with_prefix("0").await.unwrap().len() <= 2);
}

#[tokio::test]
async fn reserved_name_is_published_only_by_its_peer() {
    let storage = Arc::new(Memory::new());
    let (catalogue, other) = (open(&storage).await, open(&storage).await);
    let (owner, stranger) = (session(&catalogue, peer(1)).await, session(&other, peer(2)).await);
    let name = "name".parse().unwrap();
    for (by, replaced) in [(2, None), (1, Some(peer(2))), (1, None)] {
        assert_eq!(catalogue.reserve(&name, peer(by), NOW).await.unwrap(), replaced);
    }
    let refused = other.publish(&stranger, &publication(1), NOW).await;
    assert!(matches!(refused, Err(CatalogueError::NameReserved { by, .. }) if by == peer(1)), "{refused:?}");
    assert_eq!(catalogue.publish(&owner, &publication(1), NOW).await.unwrap().version, 1);
    assert_eq!(catalogue.publish(&owner, &publication(2), NOW).await.unwrap().version, 2);
    assert!(other.publish(&stranger, &publication(2), NOW).await.is_err(), "not even the newest version");
    assert!(catalogue.release(&name).await.unwrap());
    assert!(!catalogue.release(&name).await.unwrap());
    assert_eq!(other.publish(&stranger, &publication(3), NOW).await.unwrap().version, 3);
}
