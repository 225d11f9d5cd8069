use std::sync::atomic::Ordering;

use super::*;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::{self, LEASES, LeaseRecord, META, PROVIDERS, SESSIONS};
use enjambre_core::{Batch, Durability, Gap, KeyRange, Offer, StorageExt};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

#[tokio::test]
async fn peer_sweep_removes_peers_after_retention_only() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let peer = session(&catalogue, 1, START).await;
    for n in 0..1200 {
        catalogue.publish(&peer, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let entries = async |space| storage.scan(space, KeyRange::all(), 2000).await.unwrap().len();
    assert_eq!(catalogue.sweep_peers(START + ms(999_999)).await.unwrap().peers, 0);
    assert_eq!(entries(PROVIDERS).await, 1200);
    assert_eq!(catalogue.sweep_peers(START + ms(1_000_000)).await.unwrap().peers, 1);
    for space in [PROVIDERS, layout::OFFERS, LEASES, SESSIONS, layout::PEERS, layout::CLEARED] {
        assert_eq!(entries(space).await, 0, "{space:?}");
    }
}

#[tokio::test]
async fn online_peers_are_listed_in_pages() {
    let catalogue = open(&storage(), START).await;
    let peers = [1, 2, 3].map(|peer| PeerId::from_bytes([peer; 32]));
    let mut sessions = Vec::new();
    for (number, files) in [(1, 0..0), (2, 0..3), (3, 3..5)] {
        let peer = session(&catalogue, number, START).await;
        for n in files {
            catalogue.publish(&peer, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
        }
        sessions.push(peer);
    }
    // The claims of an earlier session do not count.
    session(&catalogue, 3, START).await;
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = catalogue.online_peers(after, 1, START).await.unwrap();
        assert!(page.len() <= 1);
        found.extend(page.into_iter().map(|online| (online.peer, online.files, online.until)));
        after = next;
        if after.is_none() {
            break;
        }
    }
    let until = START + ms(30_000);
    assert_eq!(found, [(peers[0], 0, until), (peers[1], 3, until), (peers[2], 0, until)]);
    catalogue.leave(sessions[0].id, START).await.unwrap();
    let (online, next) = catalogue.online_peers(None, 10, START).await.unwrap();
    assert_eq!((online.len(), next), (2, None));
    assert_eq!(catalogue.online_peers(None, 10, until + ms(1)).await.unwrap().0, []);
}

#[tokio::test]
async fn all_trackers_know_that_a_restored_database_lacks_writes() {
    let storage = storage();
    let [a, b] = [open(&storage, START).await, open(&storage, START).await];
    session(&a, 1, START).await;
    a.flush(START + ms(25_000)).await.unwrap();
    let key = layout::meta_key("time");
    let copied = storage.get(META, std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap();
    for catalogue in [&a, &b] {
        catalogue.flush(START + ms(60_000)).await.unwrap();
        assert_eq!(catalogue.gaps().len(), 1, "that of their start");
    }
    let mut batch = Batch::new();
    batch.put(META, key, copied);
    storage.commit(batch, Durability::Buffered).await.unwrap();
    let now = START + ms(90_000);
    let lost = Gap { after_ms: START + ms(15_000), until_ms: START + ms(100_000) };
    for catalogue in [a, b, open(&storage, now).await] {
        catalogue.flush(now).await.unwrap();
        assert!(catalogue.gaps().contains(&lost), "{:?}", catalogue.gaps());
    }
}

#[tokio::test]
async fn peer_removed_by_another_tracker_cannot_add_claims() {
    let storage = storage();
    let (here, there) = (open(&storage, START).await, open(&storage, START).await);
    let peer = session(&here, 1, START).await;
    for n in [1, 2] {
        here.publish(&peer, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    here.withdraw(&peer, &[file(2)]).await.unwrap();
    let late = START + ms(1_000_000);
    assert_eq!(there.sweep_peers(late).await.unwrap().peers, 1);
    // This tracker still has the session in its cache.
    let offers = [1, 2].map(|n| Offer { id: file(n), size: 10, complete: true });
    let announced = here.announce(&peer, &offers, late).await;
    assert!(matches!(announced, Err(CatalogueError::Unauthorized)), "{announced:?}");
    let published = here.publish(&peer, &publication("n1", file(1)), late).await;
    assert!(matches!(published, Err(CatalogueError::Unauthorized)), "{published:?}");
    for space in [PROVIDERS, layout::OFFERS, layout::CLEARED, layout::PEERS, SESSIONS] {
        assert!(storage.scan(space, KeyRange::all(), 10).await.unwrap().is_empty(), "{space:?}");
    }
}

#[tokio::test]
async fn claims_of_earlier_sessions_expire_unless_repeated() {
    let catalogue = open(&storage(), START).await;
    let first = session(&catalogue, 1, START).await;
    for n in [1, 2] {
        catalogue.publish(&first, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let second = session(&catalogue, 1, START).await;
    catalogue.announce(&second, &[Offer { id: file(1), size: 10, complete: true }], START).await.unwrap();
    let id = current_session(&catalogue, &second);
    catalogue.renew(id, START + ms(115_000)).await.unwrap();
    assert_eq!(catalogue.sweep_peers(START + ms(119_000)).await.unwrap().claims, 0);
    assert_eq!(catalogue.sweep_peers(START + ms(120_001)).await.unwrap().claims, 1);
    assert_eq!(count(&catalogue, 1, START + ms(120_001)).await, 1);
    assert_eq!(count(&catalogue, 2, START + ms(120_001)).await, 0);
}

#[tokio::test]
async fn file_without_providers_expires_unless_offered_again() {
    const RETENTION: Duration = ms(10_000_000);
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    for (name, id) in [("a", 1), ("a2", 1), ("b", 2)] {
        catalogue.publish(&peer, &publication(name, file(id)), START).await.unwrap();
    }
    let dead = START + ms(30_000);
    assert_eq!(catalogue.expire_files(RETENTION, dead).await.unwrap(), 0);
    assert_eq!(catalogue.expire_files(RETENTION, dead + RETENTION - ms(1)).await.unwrap(), 0);
    assert_eq!(catalogue.find("a", dead).await.unwrap().providers, 0);
    // A new offer of b clears its mark.
    let back = session(&catalogue, 2, dead + RETENTION - ms(1)).await;
    catalogue.announce(&back, &[Offer { id: file(2), size: 10, complete: true }], START).await.unwrap();
    assert_eq!(catalogue.expire_files(RETENTION, dead + RETENTION).await.unwrap(), 1);
    let left: Vec<_> = all(&catalogue, "", 10).await.into_iter().map(|f| f.id).collect();
    assert_eq!(left, [file(2)]);
    assert!(catalogue.file(&file(1), dead + RETENTION).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn full_table_evicts_peers_without_files_first() {
    const PEERS: u64 = 4;
    let rules = CatalogueRules { max_peers: PEERS, ..RULES };
    let catalogue = Catalogue::open(storage(), rules, START).await.unwrap();
    let open_session = async |n: u64, now| {
        catalogue.open_session(PeerId::from_bytes(*file(n).as_bytes()), Vec::new(), now).await
    };
    let offers = async || catalogue.storage.scan(layout::OFFERS, KeyRange::all(), 10).await.unwrap().len();
    // The peer with a file is away for the longest time.
    let publisher = session(&catalogue, 1, START).await;
    catalogue.publish(&publisher, &publication("a", file(1)), START).await.unwrap();
    for n in 1..PEERS {
        open_session(n, START + ms(1)).await.unwrap();
    }
    let full = open_session(PEERS, START + ms(2)).await;
    assert!(matches!(full, Err(CatalogueError::TooManyPeers)), "all peers are alive: {full:?}");
    let later = START + ms(40_000);
    tokio::time::advance(ms(1_001)).await;
    for n in PEERS..2 * PEERS - 1 {
        open_session(n, later + ms(1000 * n)).await.expect("a peer that is away is evicted");
        assert_eq!(offers().await, 1, "peer {n} evicted the publisher");
    }
    open_session(2 * PEERS, later + ms(8_000)).await.expect("only the publisher is away");
    assert_eq!(offers().await, 0);
    let full = open_session(2 * PEERS + 1, later + ms(9_000)).await;
    assert!(matches!(full, Err(CatalogueError::TooManyPeers)), "all peers are alive: {full:?}");
    assert_eq!(catalogue.peer_count.load(Ordering::Relaxed), PEERS);
}

/// Each scan of the leases that frees less than the wanted part of the table is followed by a pause.
#[tokio::test(start_paused = true)]
async fn eviction_that_frees_little_or_fails_is_not_repeated_soon() {
    const PEERS: u64 = 200;
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let rules = CatalogueRules { max_peers: PEERS, ..RULES };
    let catalogue = Catalogue::open(faulty.clone(), rules, START).await.unwrap();
    let open_session = async |n: u64| {
        catalogue.open_session(PeerId::from_bytes(*file(n).as_bytes()), Vec::new(), START).await
    };
    let is_full = |result| matches!(result, Err(CatalogueError::TooManyPeers));
    for n in 0..PEERS - 1 {
        open_session(n).await.unwrap();
    }
    let mut next = PEERS;
    let mut leaver = async || {
        next += 1;
        let session = open_session(next).await?;
        catalogue.leave(session, START).await
    };
    leaver().await.unwrap();
    // One entry is free instead of two.
    leaver().await.unwrap();
    for _ in 0..10 {
        assert!(is_full(leaver().await));
    }
    tokio::time::advance(ms(1_001)).await;
    leaver().await.unwrap();
    tokio::time::advance(ms(1_001)).await;
    faulty.add(Operation::Scan, When::Always, Fault::Unavailable);
    assert!(matches!(leaver().await, Err(CatalogueError::Storage(_))));
    assert!(is_full(leaver().await), "it does not scan");
}

/// The peer without files is the last one to go away, behind as many peers as an eviction could examine one by one.
#[tokio::test]
async fn peer_without_files_is_evicted_before_many_with_files() {
    const PEERS: u64 = 10_002;
    let rules = CatalogueRules { max_peers: PEERS, ..RULES };
    let catalogue = Catalogue::open(storage(), rules, START).await.unwrap();
    let id = |n: u64| PeerId::from_bytes(*file(n).as_bytes());
    let publisher = session(&catalogue, 1, START).await;
    catalogue.publish(&publisher, &publication("a", file(1)), START).await.unwrap();
    let offers = [Offer { id: file(1), size: 10, complete: true }];
    for n in 2..PEERS {
        let peer = catalogue.open_session(id(n), Vec::new(), START).await.unwrap();
        let peer = catalogue.authorize(peer, START).await.unwrap();
        catalogue.announce(&peer, &offers, START).await.unwrap();
    }
    // A later session without announcements is no reason to evict a peer first.
    catalogue.open_session(id(2), Vec::new(), START).await.unwrap();
    catalogue.open_session(id(PEERS), Vec::new(), START + ms(1)).await.unwrap();
    catalogue.open_session(id(PEERS + 1), Vec::new(), START + ms(40_000)).await.expect("peers are away");
    let (mut entries, mut left) = (catalogue.storage.entries(LEASES, KeyRange::all(), 1000), Vec::new());
    while let Some((_, raw)) = entries.next().await.unwrap() {
        left.push(layout::decode::<LeaseRecord>(LEASES, &raw).unwrap().id);
    }
    assert!(!left.contains(&id(PEERS)), "the peer without files is evicted");
    assert!(left.contains(&id(PEERS + 1)) && left.len() as u64 > PEERS - PEERS / 50, "{}", left.len());
}

#[tokio::test]
async fn session_voided_by_another_tracker_cannot_withdraw() {
    let storage = storage();
    let (here, there) = (open(&storage, START).await, open(&storage, START).await);
    let former = session(&here, 1, START).await;
    here.publish(&former, &publication("a", file(1)), START).await.unwrap();
    let newer = session(&there, 1, START + ms(1)).await;
    let offer = Offer { id: file(1), size: 10, complete: true };
    there.announce(&newer, &[offer], START + ms(1)).await.unwrap();
    // This tracker still has the former session in its cache.
    here.authorize(former.id, START + ms(1)).await.unwrap();
    let refused = here.withdraw(&former, &[file(1)]).await;
    assert!(matches!(refused, Err(CatalogueError::Unauthorized)), "{refused:?}");
    assert_eq!(count(&open(&storage, START + ms(1)).await, 1, START + ms(1)).await, 1);
    there.withdraw(&newer, &[file(1)]).await.unwrap();
    assert_eq!(count(&open(&storage, START + ms(1)).await, 1, START + ms(1)).await, 0);
}
