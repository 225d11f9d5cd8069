//! Announcements that write only the differences.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::catalogue::access::PAGE;
use crate::catalogue::layout::{self, Claim, FILES, FileEntry, PROVIDERS, PeerNumber};
use enjambre_core::{Batch, Durability, Offer};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

fn offer(n: u64) -> Offer {
    Offer { id: file(n), size: 10, complete: true }
}

#[tokio::test]
async fn offers_of_unknown_files_are_returned_and_ignored() {
    let catalogue = open(&storage(), START).await;
    let (a, b) = (session(&catalogue, 1, START).await, session(&catalogue, 2, START).await);
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let offers = [1, 2].map(|n| Offer { id: file(n), size: 10, complete: false });
    assert_eq!(catalogue.announce(&b, &offers, START).await.unwrap(), [file(2)]);
    assert_eq!(count(&catalogue, 1, START).await, 1, "an incomplete copy does not count");
    assert_eq!(providers(&catalogue, 1, START).await, [a.peer, b.peer]);
    assert!(providers(&catalogue, 2, START).await.is_empty());
    catalogue.withdraw(&b, &[file(1), file(9)]).await.unwrap();
    assert_eq!(providers(&catalogue, 1, START).await, [a.peer]);
}

#[tokio::test]
async fn unchanged_claim_is_not_written_again() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let a = session(&catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    catalogue.announce(&a, &[offer(1)], START).await.unwrap();
    faulty.add(Operation::Commit, When::Always, Fault::Fail);
    catalogue.announce(&a, &[offer(1), offer(1)], START).await.unwrap();
    assert!(catalogue.authorize(a.id, START).await.unwrap().offered, "the cached lease has the mark");
    let smaller = Offer { complete: false, ..offer(1) };
    assert!(catalogue.announce(&a, &[smaller], START).await.is_err(), "a changed claim is written");
    faulty.clear();
    catalogue.announce(&a, &[offer(1), smaller], START).await.unwrap();
    let claims = alive_claims(&catalogue, 1, START).await.unwrap();
    assert!(!claims[0].0.complete, "the last of several claims counts");
}

/// An announcement that finds its claim unchanged must detect that the claim is deleted before the commit.
#[tokio::test(start_paused = true)]
async fn claim_withdrawn_during_announcement_is_rewritten() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let first = session(&catalogue, 1, START).await;
    catalogue.publish(&first, &publication("a", file(1)), START).await.unwrap();
    let second = session(&catalogue, 1, START).await;
    faulty.add(Operation::Commit, When::Nth(1), Fault::Delay(Duration::from_secs(10)));
    let offers = [offer(1)];
    let mut again = Box::pin(catalogue.announce(&second, &offers, START));
    assert!(futures::poll!(&mut again).is_pending());
    catalogue.withdraw(&second, &[file(1)]).await.unwrap();
    again.await.unwrap();
    let fresh = open(&storage, START).await;
    assert_eq!(providers(&fresh, 1, START).await, [second.peer]);
}

/// As above, where the claim is deleted by the expiry of the file.
#[tokio::test(start_paused = true)]
async fn claim_deleted_by_aborted_expiry_is_rewritten() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let a = session(&catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let raw = storage.get(FILES, &[layout::file_key(&file(1))]).await.unwrap().remove(0).unwrap();
    let entry: FileEntry = layout::decode(FILES, &raw).unwrap();
    // More claims than one step deletes.
    let mut batch = Batch::new();
    for n in 0..PAGE as u64 {
        let claim = Claim { size: 10, complete: true };
        batch.put(PROVIDERS, layout::provider_key(entry.no, PeerNumber(1_000_000 + n)), claim.encode());
    }
    storage.commit(batch, Durability::Buffered).await.unwrap();
    let dead = START + RULES.leases.lease;
    let late = dead + 2 * RULES.cache_ttl;
    assert_eq!(catalogue.expire_files(ms(0), dead).await.unwrap(), 0);
    // The announcement is committed between the two steps of the expiry.
    faulty.add(Operation::Commit, When::Nth(1), Fault::Delay(Duration::from_secs(10)));
    faulty.add(Operation::Commit, When::Nth(3), Fault::Delay(Duration::from_secs(20)));
    let offers = [offer(1)];
    let mut again = Box::pin(catalogue.announce(&a, &offers, late));
    assert!(futures::poll!(&mut again).is_pending());
    let (unknown, expired) = tokio::join!(again, catalogue.expire_files(ms(0), late));
    assert!(unknown.unwrap().is_empty());
    assert_eq!(expired.unwrap(), 0);
    let fresh = open(&storage, late).await;
    let session = current_session(&catalogue, &a);
    fresh.renew(session, late).await.unwrap();
    assert_eq!(providers(&fresh, 1, late).await, [a.peer]);
    assert_eq!(fresh.find("a", late).await.unwrap().id, file(1), "its name remains");
}

#[tokio::test]
async fn stored_claim_is_found_among_many_offers() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let a = session(&catalogue, 1, START).await;
    for n in 0..20 {
        catalogue.publish(&a, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    faulty.add(Operation::Commit, When::Always, Fault::Fail);
    // With few other offers between the first and the last, and with many.
    for offers in [[offer(3), offer(5)], [offer(0), offer(19)]] {
        assert_eq!(catalogue.announce(&a, &offers, START).await.unwrap(), [], "nothing is written");
    }
}
