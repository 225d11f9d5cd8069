//! Entries that are damaged: they hide nothing but themselves.

use std::sync::Arc;

use bytes::Bytes;

use super::error::CatalogueError;
use super::layout::{LEASES, PROVIDERS};
use super::peers::Session;
use super::tests::{RULES, START, count, file, open, publication, session, storage};
use super::{Catalogue, layout};
use crate::model::record::Offer;
use crate::storage::Storage;
use crate::storage::value::{Batch, Durability, Key, KeyRange};

fn offer() -> Offer {
    Offer { id: file(1), size: 10, complete: true }
}

/// Two peers, of which the first publishes the first file and the second offers it, too.
async fn both_offer(catalogue: &Catalogue) -> (Session, Session) {
    let (a, b) = (session(catalogue, 1, START).await, session(catalogue, 2, START).await);
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    catalogue.announce(&b, &[offer()], START).await.unwrap();
    (a, b)
}

#[tokio::test]
async fn one_damaged_entry_keeps_a_sweep_from_nothing_else() {
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
    let dead = START + 30_000;
    assert_eq!(catalogue.forget_files(100_000, dead).await.unwrap(), 0);
    assert_eq!(catalogue.forget_files(100_000, dead + 100_000).await.unwrap(), 2);
    assert_eq!(catalogue.versions(), 1);
    assert_eq!(catalogue.sweep_peers(START + 2_000_000).await.unwrap().peers, 2);
}

async fn damage_lease(storage: &Arc<dyn Storage>, session: &Session) {
    let mut batch = Batch::new();
    batch.put(LEASES, layout::peer_key(session.number), Bytes::from_static(b"\xff"));
    storage.commit(batch, Durability::Buffered).await.unwrap();
}

#[tokio::test]
async fn a_damaged_lease_hides_its_own_peer_only_and_is_written_anew() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let (a, b) = both_offer(&catalogue).await;
    damage_lease(&storage, &b).await;
    // Nothing is believed for so long.
    let late = START + RULES.fresh + 1;
    let named = catalogue.providers(&file(1), late).await.unwrap().unwrap();
    assert_eq!(named.iter().map(|claim| claim.peer).collect::<Vec<_>>(), [a.peer]);
    assert_eq!(count(&catalogue, 1, late).await, 1);
    assert_eq!(catalogue.list("", None, 10, late).await.unwrap().files[0].providers, 1);
    assert_eq!(catalogue.living(late).await.unwrap(), 1);
    assert!(catalogue.damage_met() >= 2, "{}", catalogue.damage_met());
    // The peer's next renewal tells it to say hello.
    let refused = catalogue.renew(b.id, late).await;
    assert!(matches!(refused, Err(CatalogueError::Unauthorized)), "{refused:?}");
    let again = session(&catalogue, 2, late).await;
    assert_eq!(again.number, b.number);
    assert_eq!(count(&catalogue, 1, late).await, 2, "what it had announced counts again");
    let met = catalogue.damage_met();
    assert_eq!(catalogue.living(late).await.unwrap(), 2);
    assert_eq!(catalogue.damage_met(), met);
}

#[tokio::test]
async fn a_damaged_claim_hides_nothing_else_and_is_written_anew() {
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
async fn a_damaged_lease_keeps_no_other_renewal_from_being_written() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let (a, b) = (session(&catalogue, 1, START).await, session(&catalogue, 2, START).await);
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    for session in [a, b] {
        catalogue.renew(session.id, START + 20_000).await.unwrap();
    }
    damage_lease(&storage, &b).await;
    catalogue.flush(START + 20_000).await.unwrap();
    // Only who reads it in the database knows that the peer is alive.
    let fresh = Catalogue::open(Arc::clone(&storage), RULES, START).await.unwrap();
    assert_eq!(count(&fresh, 1, START + 49_999).await, 1);
    let refused = catalogue.renew(b.id, START + 20_000).await;
    assert!(matches!(refused, Err(CatalogueError::Unauthorized)), "not even remembered: {refused:?}");
}
