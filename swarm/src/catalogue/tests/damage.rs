//! Damaged entries hide only themselves.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::{self, FILES, LEASES, PINS, PROVIDERS, PinId, SESSIONS, VERSIONS};
use enjambre_core::{Batch, Durability, Key, KeyRange, Offer, StorageError};

fn offer() -> Offer {
    Offer { id: file(1), size: 10, complete: true }
}

/// Two peers: one publishes the first file, the other offers it.
async fn both_offer(catalogue: &Catalogue) -> (Session, Session) {
    let (a, b) = (session(catalogue, 1, START).await, session(catalogue, 2, START).await);
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    catalogue.announce(&b, &[offer()], START).await.unwrap();
    (a, b)
}

#[tokio::test]
async fn sweep_with_damaged_entry_processes_the_others() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    for n in 1..=3 {
        let peer = session(&catalogue, n, START).await;
        let name = format!("n{n}");
        catalogue.publish(&peer, &publication(&name, file(n.into())), START).await.unwrap();
    }
    // A name of the first of the files, and a claim of the first of the peers.
    let mut batch = Batch::new();
    for space in [layout::FILE_NAMES, layout::OFFERS] {
        let (key, _) = storage.scan(space, KeyRange::all(), 1).await.unwrap().remove(0);
        batch.put(space, Key::new([key.as_bytes(), b"?"].concat()).unwrap(), layout::MARK);
    }
    storage.commit(batch, Durability::Buffered).await.unwrap();
    let dead = START + ms(30_000);
    assert_eq!(catalogue.expire_files(ms(100_000), dead).await.unwrap(), 0);
    assert_eq!(catalogue.expire_files(ms(100_000), dead + ms(100_000)).await.unwrap(), 2);
    assert_eq!(catalogue.versions(), 1);
    assert_eq!(catalogue.sweep_peers(START + ms(2_000_000)).await.unwrap().peers, 2);
}

async fn damage_lease(storage: &Arc<dyn Storage>, session: &Session) {
    let mut batch = Batch::new();
    batch.put(LEASES, layout::peer_key(session.number), Bytes::from_static(b"\xff"));
    storage.commit(batch, Durability::Buffered).await.unwrap();
}

#[tokio::test]
async fn damaged_lease_hides_only_its_peer_until_replaced() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let (a, b) = both_offer(&catalogue).await;
    damage_lease(&storage, &b).await;
    // The cache has expired.
    let late = START + RULES.cache_ttl + ms(1);
    assert_eq!(providers(&catalogue, 1, late).await, [a.peer]);
    assert_eq!(count(&catalogue, 1, late).await, 1);
    assert_eq!(catalogue.list("", None, 10, None, late, |_| None).await.unwrap().files[0].providers, 1);
    assert_eq!(catalogue.count_alive_peers(late).await.unwrap(), 1);
    assert!(catalogue.damage.count() >= 2, "{}", catalogue.damage.count());
    // The next renewal tells the peer to open a session.
    let refused = catalogue.renew(b.id, late).await;
    assert!(matches!(refused, Err(CatalogueError::Unauthorized)), "{refused:?}");
    let again = session(&catalogue, 2, late).await;
    assert_eq!(again.number, b.number);
    assert_eq!(count(&catalogue, 1, late).await, 2, "its earlier claims count again");
    let damaged = catalogue.damage.count();
    assert_eq!(catalogue.count_alive_peers(late).await.unwrap(), 2);
    assert_eq!(catalogue.damage.count(), damaged);
}

#[tokio::test]
async fn damaged_claim_hides_only_itself_until_replaced() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let (_, b) = both_offer(&catalogue).await;
    let mut batch = Batch::new();
    for space in [PROVIDERS, layout::OFFERS] {
        let (key, _) = storage.scan(space, KeyRange::all(), 2).await.unwrap().remove(1);
        batch.put(space, key, Bytes::from_static(b"\xff"));
    }
    storage.commit(batch, Durability::Buffered).await.unwrap();
    assert_eq!(count(&catalogue, 1, START).await, 1);
    catalogue.announce(&b, &[offer()], START).await.unwrap();
    assert_eq!(count(&open(&storage, START).await, 1, START).await, 2);
}

#[tokio::test]
async fn flush_with_damaged_lease_stores_other_renewals() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let (a, b) = (session(&catalogue, 1, START).await, session(&catalogue, 2, START).await);
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    for session in [a, b] {
        catalogue.renew(session.id, START + ms(20_000)).await.unwrap();
    }
    damage_lease(&storage, &b).await;
    catalogue.flush(START + ms(20_000)).await.unwrap();
    // A tracker that starts now knows of the renewal only from the database.
    let fresh = Catalogue::open(Arc::clone(&storage), RULES, START).await.unwrap();
    assert_eq!(count(&fresh, 1, START + ms(49_999)).await, 1);
    let refused = catalogue.renew(b.id, START + ms(20_000)).await;
    assert!(matches!(refused, Err(CatalogueError::Unauthorized)), "not cached either: {refused:?}");
}

#[tokio::test]
async fn damaged_records_are_errors() {
    for space in [
        VERSIONS,
        FILES,
        PROVIDERS,
        LEASES,
        SESSIONS,
        PINS,
        layout::PINNED,
        layout::OFFERS,
        layout::FILE_NAMES,
        layout::PEERS,
    ] {
        for value in
            [&b""[..], b"\xff", b"\xa1\x61v\x01", &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]
        {
            let storage = storage();
            let catalogue = open(&storage, START).await;
            let peer = session(&catalogue, 1, START).await;
            catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
            catalogue.pin(&PinId { file: file(1), by: peer.peer }, START).await.unwrap();
            let mut batch = Batch::new();
            for (key, _) in storage.scan(space, KeyRange::all(), 10).await.unwrap() {
                batch.put(space, key, Bytes::copy_from_slice(value));
            }
            batch.put(space, Key::new(&b"\x00?"[..]).unwrap(), Bytes::copy_from_slice(value));
            storage.commit(batch, Durability::Buffered).await.unwrap();
            let fresh = open(&storage, START).await;
            let results = [
                fresh.find("a", START).await.map(drop),
                fresh.find(&file(1).to_string(), START).await.map(drop),
                fresh.list("", None, 10, None, START, |_| None).await.map(drop),
                alive_claims(&fresh, 1, START).await.map(drop).map_err(CatalogueError::from),
                fresh.publish(&peer, &publication("a", file(1)), START).await.map(drop),
                fresh.pins(None).await.map(drop),
                fresh.pins_of(peer.peer, None, 10).await.map(drop),
                fresh.sweep_peers(START + ms(2_000_000)).await.map(drop).map_err(CatalogueError::from),
                fresh
                    .expire_files(ms(1), START + ms(2_000_000))
                    .await
                    .map(drop)
                    .map_err(CatalogueError::from),
                fresh.open_session(peer.peer, Vec::new(), START).await.map(drop),
            ];
            for error in results.into_iter().filter_map(Result::err) {
                let allowed = matches!(
                    error,
                    CatalogueError::Storage(StorageError::Corrupt { .. }) | CatalogueError::Unauthorized
                );
                assert!(allowed, "{space:?}: {error:?}");
            }
        }
    }
}
