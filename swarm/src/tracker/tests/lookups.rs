//! Tests of lookups through the cache: expiry, memory, and visibility of the writes of this tracker.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;

use crate::catalogue::Catalogue;
use crate::catalogue::tests::{RULES, START, current_session, file, ms, open, publication, session, storage};
use crate::tracker::lookups::Lookups;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::lookup::{ProvidersReply, reply};
use enjambre_core::protocol::message::Reply;
use enjambre_core::{Offer, PeerId, Provider, RequestId, SessionId, Storage, UnixMillis};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

const CACHE: usize = 1 << 20;

/// A catalogue and its lookups.
struct Tracker {
    catalogue: Arc<Catalogue>,
    lookups: Lookups,
}

impl Tracker {
    async fn open(storage: &Arc<dyn Storage>, now: UnixMillis) -> Self {
        Self::with_cache(storage, CACHE, now).await
    }

    async fn with_cache(storage: &Arc<dyn Storage>, cache: usize, now: UnixMillis) -> Self {
        let catalogue = Arc::new(open(storage, now).await);
        Self { lookups: Lookups::new(Arc::clone(&catalogue), cache), catalogue }
    }

    /// The providers for a local requester from memory.
    fn cached(&self, n: u64, now: UnixMillis) -> Option<Vec<PeerId>> {
        let providers = providers_of(self.lookups.cached_providers(&file(n), true, now)?);
        let mut peers: Vec<_> = providers.into_iter().map(|provider| provider.peer).collect();
        peers.sort_unstable();
        Some(peers)
    }

    /// Looks the file up, so that it is cached, and returns its providers.
    async fn look_up(&self, n: u64, now: UnixMillis) -> Vec<PeerId> {
        let named = self.lookups.providers(&file(n), true, now).await.unwrap().unwrap();
        let mut found: Vec<_> = named.iter().map(|provider| provider.peer).collect();
        found.sort_unstable();
        if let Some(answers) = self.lookups.cached_answers(&file(n), now) {
            assert_eq!(self.cached(n, now).as_ref(), Some(&found));
            let complete = named.iter().filter(|provider| provider.complete).count();
            assert_eq!(answers.to(true).count as usize, complete);
            let found = match codec::decode_reply(&reply(RequestId(1), &answers.to(true).found)) {
                Some(Ok(Reply::Find { file })) => file,
                other => panic!("{other:?}"),
            };
            assert_eq!(self.lookups.find(&file(n).to_string(), None, now).await.unwrap(), found);
        }
        found
    }
}

fn offer(n: u64) -> Offer {
    Offer { id: file(n), size: 10, complete: true }
}

fn providers_of(reply: ProvidersReply) -> Vec<Provider> {
    match codec::decode_reply(&reply.finish(RequestId(1))) {
        Some(Ok(Reply::Providers { providers })) => providers,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn writes_of_another_tracker_are_seen_after_ttl() {
    let storage = storage();
    let (here, there) = (Tracker::open(&storage, START).await, Tracker::open(&storage, START).await);
    let a = session(&here.catalogue, 1, START).await;
    here.catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    assert_eq!(here.look_up(1, START).await, [a.peer]);
    assert_eq!(here.lookups.find("a", None, START).await.unwrap().id, file(1));
    let b = session(&there.catalogue, 2, START).await;
    there.catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    there.catalogue.publish(&b, &publication("a", file(2)), START).await.unwrap();
    let late = START + RULES.cache_ttl;
    assert_eq!(here.look_up(1, late - ms(1)).await, [a.peer], "it is cached");
    assert_eq!(here.lookups.find("a", None, late - ms(1)).await.unwrap().id, file(1));
    assert!(here.lookups.cached_answers(&file(1), late).is_none());
    assert!(here.lookups.cached_find("a", late).is_none());
    assert_eq!(here.look_up(1, late).await, [a.peer, b.peer]);
    assert_eq!(here.lookups.find("a", None, late).await.unwrap().id, file(2));
    assert!(here.lookups.cached_answers(&file(1), START - ms(1)).is_none(), "a clock that was set back");
}

#[tokio::test]
async fn writes_of_this_tracker_are_seen_at_once() {
    let tracker = Tracker::open(&storage(), START).await;
    let catalogue = &tracker.catalogue;
    let lease = RULES.leases.lease;
    let a = session(catalogue, 1, START).await;
    assert!(tracker.lookups.find("a", None, START).await.is_err(), "the absence is not cached");
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    assert_eq!(tracker.lookups.find("a", None, START).await.unwrap().id, file(1));
    assert_eq!(tracker.look_up(1, START).await, [a.peer]);
    assert!(tracker.lookups.cached_find("a", START).is_some(), "it is cached");

    let b = session(catalogue, 2, START).await;
    catalogue.announce(&b, &[Offer { complete: false, ..offer(1) }], START).await.unwrap();
    assert_eq!(tracker.look_up(1, START).await, [a.peer, b.peer]);
    catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    tracker.look_up(1, START).await;
    let named = tracker.lookups.cached_providers(&file(1), true, START).unwrap();
    assert!(providers_of(named).iter().all(|provider| provider.complete));

    catalogue.withdraw(&b, &[file(1)]).await.unwrap();
    assert_eq!(tracker.look_up(1, START).await, [a.peer]);
    catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    let b_session = current_session(catalogue, &b);
    catalogue.leave(b_session, START).await.unwrap();
    assert_eq!(tracker.look_up(1, START).await, [a.peer]);
    let b = session(catalogue, 2, START).await;
    assert_eq!(tracker.look_up(1, START).await, [a.peer, b.peer], "its claims count again");

    catalogue.publish(&a, &publication("a", file(2)), START).await.unwrap();
    assert_eq!(tracker.lookups.find("a", None, START).await.unwrap().id, file(2));
    catalogue.publish(&a, &publication("other", file(1)), START).await.unwrap();
    assert_eq!(tracker.lookups.find(&file(1).to_string(), None, START).await.unwrap().name.as_str(), "other");

    // Both leases end while the lookup is cached; then one peer returns.
    let end = START + lease;
    assert_eq!(tracker.look_up(1, end - ms(1)).await, [a.peer, b.peer]);
    assert!(tracker.lookups.cached_answers(&file(1), end - ms(1)).is_some());
    assert_eq!(tracker.look_up(1, end).await, []);
    let a_session = current_session(catalogue, &a);
    catalogue.renew(a_session, end).await.unwrap();
    assert_eq!(tracker.look_up(1, end).await, [a.peer]);

    let dead = end + 2 * lease;
    assert_eq!(catalogue.expire_files(ms(0), dead).await.unwrap(), 0);
    assert_eq!(
        catalogue.expire_files(ms(0), dead + 2 * RULES.cache_ttl - ms(1)).await.unwrap(),
        0,
        "it may be cached"
    );
    let late = dead + 2 * RULES.cache_ttl;
    tracker.look_up(1, late).await;
    assert_eq!(catalogue.expire_files(ms(0), late).await.unwrap(), 2);
    assert!(tracker.lookups.find("a", None, late).await.is_err());
    assert!(tracker.lookups.providers(&file(1), true, late).await.unwrap().is_none());
}

#[tokio::test]
async fn look_ups_and_announcements_stay_within_cache_size() {
    let cap = 64 * 1024;
    let tracker = Tracker::with_cache(&storage(), cap, START).await;
    let catalogue = &tracker.catalogue;
    let a = session(catalogue, 1, START).await;
    for n in 0..2000 {
        catalogue.publish(&a, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
        tracker.lookups.find(&format!("n{n}"), None, START).await.unwrap();
        catalogue.announce(&a, &[offer(n)], START).await.unwrap();
        assert!(tracker.lookups.cache_weight() <= cap as u64);
        assert!(catalogue.file_numbers.weight() <= RULES.file_number_cache as u64);
    }
    assert!(tracker.lookups.cache_weight() > cap as u64 / 4, "it is used");
    assert!(catalogue.file_numbers.weight() > RULES.file_number_cache as u64 / 4, "it is used");
    let none = Tracker::with_cache(&storage(), 0, START).await;
    let a = session(&none.catalogue, 1, START).await;
    none.catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    assert_eq!(none.look_up(1, START).await, [a.peer]);
    assert!(none.lookups.cached_answers(&file(1), START).is_none());
}

#[tokio::test]
async fn file_that_outgrows_its_capacity_is_read_again() {
    let tracker = Tracker::open(&storage(), START).await;
    let catalogue = &tracker.catalogue;
    let mut all = Vec::new();
    for n in 1..=100 {
        let peer = session(catalogue, n, START).await;
        if n == 1 {
            catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
            tracker.look_up(1, START).await;
        }
        catalogue.announce(&peer, &[offer(1)], START).await.unwrap();
        all.push(peer.peer);
    }
    assert!(tracker.lookups.cached_answers(&file(1), START).is_none(), "it exceeded its capacity");
    assert_eq!(tracker.look_up(1, START).await, all);
    assert!(tracker.lookups.cached_answers(&file(1), START).is_some());
}

#[tokio::test(start_paused = true)]
async fn look_ups_continue_while_a_commit_hangs() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let tracker = Tracker::open(&storage, START).await;
    let catalogue = &tracker.catalogue;
    let a = session(catalogue, 1, START).await;
    for n in [1, 2] {
        catalogue.publish(&a, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    tracker.look_up(1, START).await;
    let b = session(catalogue, 2, START).await;
    faulty.add(Operation::Commit, When::Always, Fault::Delay(Duration::from_secs(3600)));
    let offers = [offer(1), offer(2)];
    let mut stuck = Box::pin(catalogue.announce(&b, &offers, START));
    assert!(futures::poll!(&mut stuck).is_pending());
    // From the cache, and from the database.
    assert_eq!(tracker.look_up(1, START).now_or_never(), Some(vec![a.peer]));
    assert_eq!(tracker.look_up(2, START).now_or_never(), Some(vec![a.peer]));
    assert!(tracker.lookups.find("n2", None, START).now_or_never().unwrap().is_ok());
    assert_eq!(tracker.lookups.list("", None, 10, None, START).await.unwrap().files.len(), 2);
    assert!(futures::poll!(&mut stuck).is_pending());
    assert!(stuck.await.unwrap().is_empty());
    assert_eq!(tracker.look_up(1, START).await, [a.peer, b.peer]);
    assert_eq!(faulty.faults_met(), 1);
}

#[tokio::test(start_paused = true)]
async fn concurrent_look_ups_read_a_file_once() {
    let faulty = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faulty.clone();
    let tracker = Tracker::open(&storage, START).await;
    let a = session(&tracker.catalogue, 1, START).await;
    tracker.catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    // A provider that is away has no valid entry in the cache.
    let b = session(&tracker.catalogue, 2, START).await;
    tracker.catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    tracker.catalogue.leave(b.id, START).await.unwrap();
    for operation in [Operation::Get, Operation::Scan] {
        faulty.add(operation, When::Always, Fault::Delay(Duration::from_millis(10)));
    }
    let expired = START + RULES.cache_ttl + ms(1);
    let found = join_all((0..50).map(|_| tracker.look_up(1, expired))).await;
    assert!(found.iter().all(|found| *found == [a.peer]));
    assert_eq!(faulty.faults_met(), 3, "the file, the claims and the leases");
}

#[tokio::test]
async fn remote_requester_gets_no_loopback_endpoints() {
    let tracker = Tracker::open(&storage(), START).await;
    let catalogue = &tracker.catalogue;
    let endpoints = ["zmq://127.0.0.1:1", "zmq://10.0.0.1:1"].map(|text| text.parse().unwrap()).to_vec();
    let id = catalogue.open_session(PeerId::from_bytes([1; 32]), endpoints, START).await.unwrap();
    let a = catalogue.authorize(id, START).await.unwrap();
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    tracker.look_up(1, START).await;
    let near = tracker.lookups.cached_providers(&file(1), true, START).unwrap();
    assert_eq!(providers_of(near)[0].endpoints.len(), 2);
    let far = tracker.lookups.cached_providers(&file(1), false, START).unwrap();
    let far: Vec<_> = providers_of(far)[0].endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(far, ["zmq://10.0.0.1:1"]);
}

#[tokio::test]
async fn claims_of_another_size_are_cached_with_it() {
    let tracker = Tracker::open(&storage(), START).await;
    let catalogue = &tracker.catalogue;
    let sizes = |now| {
        let providers = providers_of(tracker.lookups.cached_providers(&file(1), true, now).unwrap());
        let mut sizes: Vec<_> = providers.iter().map(|each| (each.peer, each.size, each.complete)).collect();
        sizes.sort_unstable();
        sizes
    };
    let a = session(catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let (b, c) = (session(catalogue, 2, START).await, session(catalogue, 3, START).await);
    let other = Offer { size: 11, complete: false, ..offer(1) };
    catalogue.announce(&b, &[other], START).await.unwrap();
    assert_eq!(tracker.look_up(1, START).await, [a.peer, b.peer]);
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 11, false)]);
    // One other size replaces another within the capacity.
    catalogue.announce(&b, &[Offer { size: 12, ..offer(1) }], START).await.unwrap();
    assert!(tracker.lookups.cached_answers(&file(1), START).is_some());
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 12, true)]);
    catalogue.announce(&b, &[offer(1)], START).await.unwrap();
    catalogue.announce(&c, &[other], START).await.unwrap();
    assert!(tracker.lookups.cached_answers(&file(1), START).is_some());
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 10, true), (c.peer, 11, false)]);
    catalogue.withdraw(&c, &[file(1)]).await.unwrap();
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 10, true)]);
    // A second one exceeds the capacity, so the file is read again.
    for by in [&b, &c] {
        catalogue.announce(by, &[other], START).await.unwrap();
    }
    assert!(tracker.lookups.cached_answers(&file(1), START).is_none(), "it exceeded its capacity");
    tracker.look_up(1, START).await;
    assert_eq!(sizes(START), [(a.peer, 10, true), (b.peer, 11, false), (c.peer, 11, false)]);
}

#[tokio::test]
async fn only_complete_reachable_providers_are_counted() {
    let tracker = Tracker::open(&storage(), START).await;
    let catalogue = &tracker.catalogue;
    let a = session(catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let b = session(catalogue, 2, START).await;
    catalogue.announce(&b, &[Offer { complete: false, ..offer(1) }], START).await.unwrap();
    let loopback = vec!["tcp://127.0.0.1:1".parse().unwrap()];
    let c = catalogue.open_session(PeerId::from_bytes([3; 32]), loopback, START).await.unwrap();
    let c = catalogue.authorize(c, START).await.unwrap();
    catalogue.announce(&c, &[offer(1)], START).await.unwrap();
    for (requester, expected) in [(None, 2), (Some("127.0.0.1"), 2), (Some("10.0.0.9"), 1)] {
        let requester = requester.map(|address| address.parse().unwrap());
        // From the database, then from memory.
        for _ in 0..2 {
            let listed = tracker.lookups.list("", None, 10, requester, START).await.unwrap();
            assert_eq!(listed.files[0].providers, expected, "{requester:?}");
            for query in ["a".to_owned(), file(1).to_string(), file(1).to_string()[..8].to_owned()] {
                let found = tracker.lookups.find(&query, requester, START).await.unwrap();
                assert_eq!(found.providers, expected, "{query} {requester:?}");
            }
        }
    }
    assert_eq!(tracker.look_up(1, START).await, [a.peer, b.peer, c.peer]);
}

#[tokio::test]
async fn each_of_many_providers_is_chosen_sometimes() {
    let tracker = Tracker::open(&storage(), START).await;
    let catalogue = &tracker.catalogue;
    let a = session(catalogue, 1, START).await;
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let mut all = vec![a.peer];
    for n in 2..=200 {
        let peer = session(catalogue, n, START).await;
        catalogue.announce(&peer, &[offer(1)], START).await.unwrap();
        all.push(peer.peer);
    }
    let (mut read, mut cached) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let named = tracker.lookups.providers(&file(1), true, START).await.unwrap().unwrap();
        assert_eq!(named.len(), 100);
        read.extend(named.iter().map(|provider| provider.peer));
        let named = providers_of(tracker.lookups.cached_providers(&file(1), true, START).unwrap());
        assert_eq!(named.len(), 100);
        cached.extend(named.iter().map(|provider| provider.peer));
    }
    for mut named in [read, cached] {
        named.sort_unstable();
        named.dedup();
        // The chance that a provider is never chosen is below 1 in 5 million.
        assert_eq!(named, all);
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Modelled {
    session: Option<SessionId>,
    renewed: UnixMillis,
    claims: [bool; 3],
}

/// Any sequence of requests, time and restarts: a peer that claims a file and renewed in time is named, a peer that left,
/// withdrew or did not renew for a lease is not. After a restart there is a grace period of one lease.
async fn check_any_sequence(steps: Vec<(u8, usize, usize)>) {
    const LEASE: Duration = RULES.leases.lease;
    let storage = storage();
    let mut tracker = Tracker::open(&storage, START).await;
    let mut catalogue = Arc::clone(&tracker.catalogue);
    let publisher = session(&catalogue, 9, START).await;
    for n in 0..3 {
        catalogue.publish(&publisher, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let endpoint: enjambre_core::model::endpoint::Endpoint = "zmq://10.0.0.1:1".parse().unwrap();
    let peer = |n: usize| PeerId::from_bytes([u8::try_from(n).unwrap(); 32]);
    let mut model = [Modelled::default(); 3];
    let (mut now, mut restarted) = (START, None);
    for (kind, who, what) in steps {
        let modelled = &mut model[who];
        let id = file(what as u64);
        match (kind, modelled.session) {
            (0, _) => {
                let new = catalogue.open_session(peer(who), vec![endpoint.clone()], now).await.unwrap();
                (modelled.session, modelled.renewed) = (Some(new), now);
            }
            (1 | 2, Some(session)) => {
                let session = catalogue.authorize(session, now).await.unwrap();
                if kind == 1 {
                    let offer = Offer { id, size: 10, complete: true };
                    assert!(catalogue.announce(&session, &[offer], START).await.unwrap().is_empty());
                } else {
                    catalogue.withdraw(&session, &[id]).await.unwrap();
                }
                modelled.claims[what] = kind == 1;
            }
            (3, Some(session)) => {
                catalogue.renew(session, now).await.unwrap();
                modelled.renewed = now;
            }
            (4, Some(session)) => {
                catalogue.leave(session, now).await.unwrap();
                modelled.session = None;
            }
            (5..=7, _) => {
                now = now + ms([1_000, 7_000, 16_000][what]);
                catalogue.flush(now).await.unwrap();
            }
            (8, _) => {
                catalogue.flush(now).await.unwrap();
                now = now + ms([0, 20_000, 200_000][what]);
                tracker = Tracker::open(&storage, now).await;
                catalogue = Arc::clone(&tracker.catalogue);
                restarted = Some(now);
            }
            _ => {}
        }
        for n in 0..3 {
            let named = tracker.lookups.providers(&file(n), true, now).await.unwrap().unwrap_or_default();
            if let Some(cached) = tracker.cached(n, now) {
                let mut expected: Vec<_> = named.iter().map(|provider| provider.peer).collect();
                expected.sort_unstable();
                assert_eq!(cached, expected);
            }
            for (at, modelled) in model.iter().enumerate() {
                let listed = named.iter().any(|provider| provider.peer == peer(at));
                let claimed = modelled.claims[n as usize] && modelled.session.is_some();
                let alive = now < modelled.renewed + LEASE;
                let grace = restarted.is_some_and(|since| now < since + LEASE);
                assert!(
                    !listed || (claimed && (alive || grace)),
                    "peer {at}, file {n}: {modelled:?} at {now:?}"
                );
                assert!(listed || !(claimed && alive), "peer {at}, file {n}: {modelled:?} at {now:?}");
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn exactly_the_living_providers_are_returned(
        steps in proptest::collection::vec((0u8..9, 0usize..3, 0usize..3), 1..60),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(check_any_sequence(steps));
    }
}
