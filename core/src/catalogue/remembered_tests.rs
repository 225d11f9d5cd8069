//! What is remembered of look-ups: how long, how much, and that no write of the same tracker is missed.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::layout::{self, Claim, FILES, FileEntry, PROVIDERS, PeerNumber};
use super::tests::{RULES, START, file, open, publication, session, storage};
use super::{Catalogue, CatalogueRules, PAGE};
use crate::model::id::PeerId;
use crate::model::record::{Offer, Provider};
use crate::protocol::codec;
use crate::protocol::lookup::{ProvidersReply, reply};
use crate::protocol::message::Reply;
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::value::{Batch, Durability};
use crate::transport::envelope::RequestId;

fn offer(n: u64) -> Offer {
    Offer { id: file(n), size: 10, complete: true }
}

fn told(reply: ProvidersReply) -> Vec<Provider> {
    match codec::decode_reply(&reply.finish(RequestId(1))) {
        Some(Ok(Reply::Providers { providers })) => providers,
        other => panic!("{other:?}"),
    }
}

/// Who is named out of memory to somebody near.
pub(super) fn remembered(catalogue: &Catalogue, n: u64, now: u64) -> Option<Vec<PeerId>> {
    let told = told(catalogue.providers_remembered(&file(n), true, now)?);
    let mut peers: Vec<_> = told.into_iter().map(|provider| provider.peer).collect();
    peers.sort_unstable();
    Some(peers)
}

/// Looks the file up, so that it is remembered, and returns who has it.
async fn look(catalogue: &Catalogue, n: u64, now: u64) -> Vec<PeerId> {
    let named = catalogue.providers_for(&file(n), true, now).await.unwrap().unwrap();
    let mut found: Vec<_> = named.iter().map(|provider| provider.peer).collect();
    found.sort_unstable();
    if let Some(answers) = catalogue.answers_remembered(&file(n), now) {
        assert_eq!(remembered(catalogue, n, now).as_ref(), Some(&found));
        assert_eq!(answers.count as usize, found.len());
        let found = match codec::decode_reply(&reply(RequestId(1), &answers.found)) {
            Some(Ok(Reply::Find { file })) => file,
            other => panic!("{other:?}"),
        };
        assert_eq!(catalogue.find(&file(n).to_string(), now).await.unwrap(), found);
    }
    found
}

#[tokio::test]
async fn what_another_tracker_writes_is_seen_after_five_seconds() {
    let storage = storage();
    let (here, there) = (open(&storage, START).await, open(&storage, START).await);
    let a = session(&here, 1, START).await;
    here.publish(&a, &publication("a", file(1)), START).await.unwrap();
    assert_eq!(look(&here, 1, START).await, [a.peer]);
    assert_eq!(here.find("a", START).await.unwrap().id, file(1));
    let b = session(&there, 2, START).await;
    there.announce(&b, &[offer(1)], START).await.unwrap();
    there.publish(&b, &publication("a", file(2)), START).await.unwrap();
    let late = START + RULES.fresh;
    assert_eq!(look(&here, 1, late - 1).await, [a.peer], "it is remembered");
    assert_eq!(here.find("a", late - 1).await.unwrap().id, file(1));
    assert!(here.answers_remembered(&file(1), late).is_none());
    assert!(here.find_remembered("a", late).is_none());
    assert_eq!(look(&here, 1, late).await, [a.peer, b.peer]);
    assert_eq!(here.find("a", late).await.unwrap().id, file(2));
    assert!(here.answers_remembered(&file(1), START - 1).is_none(), "a clock that was put back");
}

#[tokio::test]
async fn every_write_of_this_tracker_is_seen_at_once() {
    let catalogue = open(&storage(), START).await;
    let lease = RULES.leases.lease;
    let a = session(&catalogue, 1, START).await;
    assert!(catalogue.find("a", START).await.is_err(), "that it is missing is not remembered");
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    assert_eq!(catalogue.find("a", START).await.unwrap().id, file(1));
    assert_eq!(look(&catalogue, 1, START).await, [a.peer]);
    assert!(catalogue.find_remembered("a", START).is_some(), "it needs no database");

    let b = session(&catalogue, 2, START).await;
    catalogue.announce(&b, &[Offer { complete: false, ..offer(1) }], START).await.unwrap();
    assert_eq!(look(&catalogue, 1, START).await, [a.peer, b.peer]);
    catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    look(&catalogue, 1, START).await;
    let named = catalogue.providers_remembered(&file(1), true, START).unwrap();
    assert!(told(named).iter().all(|provider| provider.complete));

    catalogue.withdraw(&b, &[file(1)]).await.unwrap();
    assert_eq!(look(&catalogue, 1, START).await, [a.peer]);
    catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    let b_session = catalogue.cache.lock().session_of(b.number);
    catalogue.leave(b_session, START).await.unwrap();
    assert_eq!(look(&catalogue, 1, START).await, [a.peer]);
    let b = session(&catalogue, 2, START).await;
    assert_eq!(look(&catalogue, 1, START).await, [a.peer, b.peer], "its claims count again");

    catalogue.publish(&a, &publication("a", file(2)), START).await.unwrap();
    assert_eq!(catalogue.find("a", START).await.unwrap().id, file(2));
    catalogue.publish(&a, &publication("other", file(1)), START).await.unwrap();
    assert_eq!(catalogue.find(&file(1).to_string(), START).await.unwrap().name.as_str(), "other");

    // The leases of both end in the middle of what may be remembered; then one comes back.
    let end = START + lease;
    assert_eq!(look(&catalogue, 1, end - 1).await, [a.peer, b.peer]);
    assert!(catalogue.answers_remembered(&file(1), end - 1).is_some());
    assert_eq!(look(&catalogue, 1, end).await, []);
    let a_session = catalogue.cache.lock().session_of(a.number);
    catalogue.renew(a_session, end).await.unwrap();
    assert_eq!(look(&catalogue, 1, end).await, [a.peer]);

    let dead = end + 2 * lease;
    assert_eq!(catalogue.forget_files(0, dead).await.unwrap(), 0);
    assert_eq!(
        catalogue.forget_files(0, dead + 2 * RULES.fresh - 1).await.unwrap(),
        0,
        "it may be remembered"
    );
    let late = dead + 2 * RULES.fresh;
    look(&catalogue, 1, late).await;
    assert_eq!(catalogue.forget_files(0, late).await.unwrap(), 2);
    assert!(catalogue.find("a", late).await.is_err());
    assert!(catalogue.providers(&file(1), late).await.unwrap().is_none());
}

#[tokio::test]
async fn a_flood_of_look_ups_and_announcements_takes_no_more_memory_than_it_may() {
    let cap = 64 * 1024;
    let catalogue = Catalogue::open(storage(), CatalogueRules { cache: cap, ..RULES }, START).await.unwrap();
    let a = session(&catalogue, 1, START).await;
    for n in 0..2000 {
        catalogue.publish(&a, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
        catalogue.find(&format!("n{n}"), START).await.unwrap();
        catalogue.announce(&a, &[offer(n)], START).await.unwrap();
        assert!(catalogue.remembered.weight() <= cap as u64);
    }
    assert!(catalogue.remembered.weight() > cap as u64 / 4, "it is made use of");
    let none = Catalogue::open(storage(), CatalogueRules { cache: 0, ..RULES }, START).await.unwrap();
    let a = session(&none, 1, START).await;
    none.publish(&a, &publication("a", file(1)), START).await.unwrap();
    assert_eq!(look(&none, 1, START).await, [a.peer]);
    assert!(none.answers_remembered(&file(1), START).is_none());
}

#[tokio::test]
async fn a_file_that_more_and_more_peers_announce_is_not_counted_for_less_than_it_takes() {
    let catalogue = open(&storage(), START).await;
    let mut all = Vec::new();
    for n in 1..=100 {
        let peer = session(&catalogue, n, START).await;
        if n == 1 {
            catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
            look(&catalogue, 1, START).await;
        }
        catalogue.announce(&peer, &[offer(1)], START).await.unwrap();
        all.push(peer.peer);
    }
    assert!(catalogue.answers_remembered(&file(1), START).is_none(), "it outgrew its place");
    assert_eq!(look(&catalogue, 1, START).await, all);
    assert!(catalogue.answers_remembered(&file(1), START).is_some());
}

#[tokio::test(start_paused = true)]
async fn look_ups_go_on_while_a_commit_is_stuck() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let a = session(&catalogue, 1, START).await;
    for n in [1, 2] {
        catalogue.publish(&a, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    look(&catalogue, 1, START).await;
    let b = session(&catalogue, 2, START).await;
    faulty.add(Operation::Commit, When::Always, Fault::Delay(Duration::from_secs(3600)));
    let offers = [offer(1), offer(2)];
    let mut stuck = Box::pin(catalogue.announce(&b, &offers, START));
    assert!(futures::poll!(&mut stuck).is_pending());
    // Out of memory, and out of the database.
    assert_eq!(look(&catalogue, 1, START).now_or_never(), Some(vec![a.peer]));
    assert_eq!(look(&catalogue, 2, START).now_or_never(), Some(vec![a.peer]));
    assert!(catalogue.find("n2", START).now_or_never().unwrap().is_ok());
    assert_eq!(catalogue.list("", None, 10, START).await.unwrap().files.len(), 2);
    assert!(futures::poll!(&mut stuck).is_pending());
    assert!(stuck.await.unwrap().is_empty());
    assert_eq!(look(&catalogue, 1, START).await, [a.peer, b.peer]);
    assert_eq!(faulty.faults_met(), 1);
}

#[tokio::test]
async fn who_asks_from_elsewhere_is_not_told_of_loopback_addresses() {
    let catalogue = open(&storage(), START).await;
    let endpoints = ["zmq://127.0.0.1:1", "zmq://10.0.0.1:1"].map(|text| text.parse().unwrap()).to_vec();
    let id = catalogue.hello(PeerId::from_bytes([1; 32]), endpoints, START).await.unwrap();
    let a = catalogue.authorize(id, START).await.unwrap();
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    look(&catalogue, 1, START).await;
    let near = catalogue.providers_remembered(&file(1), true, START).unwrap();
    assert_eq!(told(near)[0].endpoints.len(), 2);
    let far = catalogue.providers_remembered(&file(1), false, START).unwrap();
    let far: Vec<_> = told(far)[0].endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(far, ["zmq://10.0.0.1:1"]);
}

#[tokio::test]
async fn a_claim_that_is_written_down_already_is_not_written_again() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let a = session(&catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    catalogue.announce(&a, &[offer(1)], START).await.unwrap();
    faulty.add(Operation::Commit, When::Always, Fault::Fail);
    catalogue.announce(&a, &[offer(1), offer(1)], START).await.unwrap();
    let smaller = Offer { complete: false, ..offer(1) };
    assert!(catalogue.announce(&a, &[smaller], START).await.is_err(), "this one is another claim");
    faulty.clear();
    catalogue.announce(&a, &[offer(1), smaller], START).await.unwrap();
    look(&catalogue, 1, START).await;
    let named = catalogue.providers_remembered(&file(1), true, START).unwrap();
    assert!(!told(named)[0].complete, "of several claims the last one counts");
}

/// An announcement that finds its claim unchanged must not trust that it is still there when it is written.
#[tokio::test(start_paused = true)]
async fn a_claim_that_is_cleared_away_while_it_is_announced_again_is_written_as_a_whole() {
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
    assert_eq!(look(&fresh, 1, START).await, [second.peer]);
}

/// As above, where what takes the claim away is a file that is being forgotten.
#[tokio::test(start_paused = true)]
async fn a_claim_that_goes_with_a_file_which_is_kept_after_all_is_written_as_a_whole() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let a = session(&catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let raw = storage.get(FILES, &[layout::file_key(&file(1))]).await.unwrap().remove(0).unwrap();
    let entry: FileEntry = layout::decode(FILES, &raw).unwrap();
    // More claims than go in one step.
    let mut batch = Batch::new();
    for n in 0..PAGE as u64 {
        let claim = Claim { size: 10, complete: true };
        batch.put(PROVIDERS, layout::provider_key(entry.no, PeerNumber(1_000_000 + n)), claim.encode());
    }
    storage.commit(batch, Durability::Buffered).await.unwrap();
    let dead = START + RULES.leases.lease;
    let late = dead + 2 * RULES.fresh;
    assert_eq!(catalogue.forget_files(0, dead).await.unwrap(), 0);
    // The announcement is written between the two steps of forgetting.
    faulty.add(Operation::Commit, When::Nth(1), Fault::Delay(Duration::from_secs(10)));
    faulty.add(Operation::Commit, When::Nth(3), Fault::Delay(Duration::from_secs(20)));
    let offers = [offer(1)];
    let mut again = Box::pin(catalogue.announce(&a, &offers, late));
    assert!(futures::poll!(&mut again).is_pending());
    let (unknown, forgotten) = tokio::join!(again, catalogue.forget_files(0, late));
    assert!(unknown.unwrap().is_empty());
    assert_eq!(forgotten.unwrap(), 0);
    let fresh = open(&storage, late).await;
    let session = catalogue.cache.lock().session_of(a.number);
    fresh.renew(session, late).await.unwrap();
    assert_eq!(look(&fresh, 1, late).await, [a.peer]);
    assert_eq!(fresh.find("a", late).await.unwrap().id, file(1), "its name is still there");
}

#[tokio::test]
async fn claims_of_another_size_are_remembered_with_it() {
    let catalogue = open(&storage(), START).await;
    let sizes = |now| {
        let told = told(catalogue.providers_remembered(&file(1), true, now).unwrap());
        let mut sizes: Vec<_> = told.iter().map(|told| (told.peer, told.size, told.complete)).collect();
        sizes.sort_unstable();
        sizes
    };
    let a = session(&catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let (b, c) = (session(&catalogue, 2, START).await, session(&catalogue, 3, START).await);
    let other = Offer { size: 11, complete: false, ..offer(1) };
    catalogue.announce(&b, &[other], START).await.unwrap();
    assert_eq!(look(&catalogue, 1, START).await, [a.peer, b.peer]);
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 11, false)]);
    // One size for another, where there is room for as many as were read.
    catalogue.announce(&b, &[Offer { size: 12, ..offer(1) }], START).await.unwrap();
    assert!(catalogue.answers_remembered(&file(1), START).is_some());
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 12, true)]);
    catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    catalogue.announce(&c, &[other], START).await.unwrap();
    assert!(catalogue.answers_remembered(&file(1), START).is_some());
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 10, true), (c.peer, 11, false)]);
    catalogue.withdraw(&c, &[file(1)]).await.unwrap();
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 10, true)]);
    // For a second one there is no room; it is read anew.
    for by in [&b, &c] {
        catalogue.announce(by, &[other], START).await.unwrap();
    }
    assert!(catalogue.answers_remembered(&file(1), START).is_none(), "it outgrew its place");
    look(&catalogue, 1, START).await;
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 11, false), (c.peer, 11, false)]);
}

#[tokio::test]
async fn of_many_providers_each_is_named_now_and_then() {
    let catalogue = open(&storage(), START).await;
    let a = session(&catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let mut all = vec![a.peer];
    for n in 2..=200 {
        let peer = session(&catalogue, n, START).await;
        catalogue.announce(&peer, &[offer(1)], START).await.unwrap();
        all.push(peer.peer);
    }
    let (mut read, mut remembered) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let named = catalogue.providers_for(&file(1), true, START).await.unwrap().unwrap();
        assert_eq!(named.len(), 100);
        read.extend(named.iter().map(|provider| provider.peer));
        let named = told(catalogue.providers_remembered(&file(1), true, START).unwrap());
        assert_eq!(named.len(), 100);
        remembered.extend(named.iter().map(|provider| provider.peer));
    }
    for mut named in [read, remembered] {
        named.sort_unstable();
        named.dedup();
        // That one of them is left out by chance is less likely than 1 in 5 millions.
        assert_eq!(named, all);
    }
}

#[tokio::test]
async fn a_claim_is_found_again_among_many_others_of_the_peer() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let catalogue = open(&storage, START).await;
    let a = session(&catalogue, 1, START).await;
    for n in 0..20 {
        catalogue.publish(&a, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    faulty.add(Operation::Commit, When::Always, Fault::Fail);
    // With few between the first and the last of them, and with many.
    for offers in [[offer(3), offer(5)], [offer(0), offer(19)]] {
        assert_eq!(catalogue.announce(&a, &offers, START).await.unwrap(), [], "nothing is written");
    }
}
