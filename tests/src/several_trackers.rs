//! Test cases for several trackers with one database, for any storage backend.
//!
//! Each case gets three connections to an empty database, like three tracker processes. The cases pass the current time to
//! the catalogue, so they do not wait.

#![allow(clippy::expect_used, reason = "test code")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use enjambre_core::{
    FileId, FileKind, KeyRange, Offer, PeerId, Publication, SessionId, Space, Storage, UnixMillis,
};
use enjambre_swarm::catalogue::error::CatalogueError;
use enjambre_swarm::catalogue::layout::{self, FILES, FileEntry, LEASES, OFFERS, PEERS, PROVIDERS};
use enjambre_swarm::catalogue::leases::LeaseRules;
use enjambre_swarm::catalogue::peers::Session;
use enjambre_swarm::catalogue::{Catalogue, CatalogueRules, Task};
use enjambre_swarm::tracker::lookups::Lookups;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const LEASE: Duration = ms(30_000);
const CACHE_TTL: Duration = ms(5_000);
const RETENTION: Duration = ms(1_000_000);
const START: UnixMillis = UnixMillis(1_000_000_000);
const RULES: CatalogueRules = CatalogueRules {
    leases: LeaseRules { lease: LEASE, retention: RETENTION, settle: ms(120_000) },
    cache_ttl: CACHE_TTL,
    max_peers: 10_000,
    max_versions: 1_000_000,
    file_number_cache: 1 << 17,
};

/// Three connections to one database.
pub type Connections = [Arc<dyn Storage>; 3];

struct Trackers {
    storage: Arc<dyn Storage>,
    all: [Arc<Catalogue>; 3],
    lookups: [Lookups; 3],
}

impl Trackers {
    async fn open(connections: Connections) -> Self {
        let storage = Arc::clone(&connections[0]);
        let [a, b, c] = connections.map(|connection| Catalogue::open(connection, RULES, START));
        let open = |opened: Result<Catalogue, _>| Arc::new(opened.expect("the catalogue opens"));
        let (a, b, c) = tokio::join!(a, b, c);
        let all = [open(a), open(b), open(c)];
        assert!(all.iter().all(|each| each.id() == all[0].id()), "one database has one id");
        let lookups = all.each_ref().map(|catalogue| Lookups::new(Arc::clone(catalogue), 1 << 20));
        Self { storage, all, lookups }
    }

    async fn session(&self, at: usize, peer: u8, now: UnixMillis) -> Session {
        let endpoint = format!("tcp://10.0.0.{peer}:7710").parse().expect("a valid endpoint");
        let opened = self.all[at].open_session(PeerId::from_bytes([peer; 32]), vec![endpoint], now).await;
        let id = opened.expect("the session opens");
        self.all[at].authorize(id, now).await.expect("a new session is valid")
    }

    async fn publish(&self, at: usize, by: &Session, name: &str, n: u64, now: UnixMillis) -> u64 {
        let published = self.all[at].publish(by, &publication(name, n), now).await;
        published.expect("the publication succeeds").version
    }

    /// The number of providers of the file according to one of the trackers.
    async fn count(&self, at: usize, n: u64, now: UnixMillis) -> usize {
        let providers = self.lookups[at].providers(&file(n), true, now).await;
        providers.expect("the lookup succeeds").unwrap_or_default().len()
    }

    async fn entries(&self, space: Space) -> usize {
        self.storage.scan(space, KeyRange::all(), 2000).await.expect("the scan succeeds").len()
    }
}

fn file(n: u64) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

fn publication(name: &str, n: u64) -> Publication {
    let name = name.parse().expect("a valid name");
    Publication { name, id: file(n), size: 10, kind: FileKind::File }
}

fn offer(n: u64) -> Offer {
    Offer { id: file(n), size: 10, complete: true }
}

/// Runs all cases, each with a new database.
///
/// # Panics
/// Panics if a case fails.
pub async fn run_all(fresh: impl AsyncFn() -> Connections) {
    any_tracker_answers_for_all(fresh().await).await;
    session_is_valid_everywhere_until_a_newer_one(fresh().await).await;
    renewal_at_one_tracker_counts_at_all(fresh().await).await;
    late_flush_keeps_a_later_renewal(fresh().await).await;
    concurrent_publications_all_succeed(fresh().await).await;
    one_tracker_at_a_time_sweeps(fresh().await).await;
    peer_returning_during_a_sweep_keeps_or_loses_all(fresh().await).await;
}

async fn any_tracker_answers_for_all(connections: Connections) {
    let trackers = Trackers::open(connections).await;
    let publisher = trackers.session(0, 1, START).await;
    assert_eq!(trackers.publish(0, &publisher, "film", 1, START).await, 1);
    let other = trackers.session(1, 2, START).await;
    let unknown =
        trackers.all[1].announce(&other, &[offer(1)], START).await.expect("the announcement succeeds");
    assert!(unknown.is_empty(), "a file published at one tracker is unknown at another");
    for (at, tracker) in trackers.lookups.iter().enumerate() {
        assert_eq!(trackers.count(at, 1, START).await, 2);
        let found = tracker.find("film", None, START).await.expect("the lookup succeeds");
        assert_eq!((found.id, found.version, found.providers), (file(1), 1, 2));
        let page = tracker.list("f*", None, 10, None, START).await.expect("the scan succeeds");
        assert_eq!(page.files.len(), 1);
    }
    // A newer version and a peer that leaves are seen once the caches have expired.
    assert_eq!(trackers.publish(2, &publisher, "film", 2, START + ms(1)).await, 2);
    trackers.all[2].leave(other.id, START + ms(1)).await.expect("the peer leaves");
    for (at, tracker) in trackers.lookups.iter().enumerate() {
        let later = START + CACHE_TTL + ms(1);
        assert_eq!(tracker.find("film", None, later).await.expect("the lookup succeeds").id, file(2));
        assert_eq!(trackers.count(at, 1, later).await, 1);
    }
}

async fn session_is_valid_everywhere_until_a_newer_one(connections: Connections) {
    let trackers = Trackers::open(connections).await;
    let former = trackers.session(0, 1, START).await;
    trackers.publish(1, &former, "a", 1, START).await;
    for (n, tracker) in trackers.all.iter().enumerate() {
        tracker.renew(former.id, START + ms(1)).await.expect("the session is valid here");
        let session = tracker.authorize(former.id, START + ms(1)).await.expect("the session is valid");
        assert_eq!(
            (session.id, session.number, session.began),
            (former.id, former.number, former.began),
            "{n}"
        );
    }
    // A session opened by a tracker whose clock is behind still counts as newer.
    let newer = trackers.session(1, 1, START - ms(7000)).await;
    assert!(newer.began > former.began);
    for tracker in &trackers.all {
        let less = Offer { complete: false, ..offer(1) };
        let late = tracker.announce(&former, &[less], START + ms(2)).await;
        assert!(matches!(late, Err(CatalogueError::Unauthorized | CatalogueError::Replaced)), "{late:?}");
        let late = tracker.leave(former.id, START + ms(2)).await;
        assert!(matches!(late, Err(CatalogueError::Unauthorized | CatalogueError::Replaced)), "{late:?}");
        let late = tracker.renew(former.id, START + CACHE_TTL + ms(2)).await;
        assert!(matches!(late, Err(CatalogueError::Unauthorized | CatalogueError::Replaced)), "{late:?}");
        tracker.renew(newer.id, START + CACHE_TTL + ms(2)).await.expect("the newer session is valid");
    }
    trackers.all[2].leave(newer.id, START + CACHE_TTL + ms(3)).await.expect("the peer leaves");
    let late = trackers.all[0].renew(newer.id, START + 2 * CACHE_TTL + ms(4)).await;
    assert!(matches!(late, Err(CatalogueError::Unauthorized | CatalogueError::Replaced)), "{late:?}");
}

/// One peer renews at one tracker, another alternates between trackers, every third of a lease. Each tracker flushes every
/// 5 s at a different time, and the clocks differ by up to 5 s.
async fn renewal_at_one_tracker_counts_at_all(connections: Connections) {
    const CLOCKS: [Duration; 3] = [ms(5_000), ms(0), ms(10_000)];
    let trackers = Trackers::open(connections).await;
    let clock = |at: usize, now: UnixMillis| now - ms(5_000) + CLOCKS[at];
    let stationary = trackers.session(0, 1, clock(0, START)).await;
    trackers.publish(0, &stationary, "a", 1, clock(0, START)).await;
    let roaming = trackers.session(1, 2, clock(1, START)).await;
    trackers.publish(1, &roaming, "b", 2, clock(1, START)).await;
    for second in 1..=120 {
        let now = START + Duration::from_secs(second);
        if second % 10 == 0 {
            trackers.all[0].renew(stationary.id, clock(0, now)).await.expect("the renewal succeeds");
            let at = (second / 10 % 3) as usize;
            trackers.all[at].renew(roaming.id, clock(at, now)).await.expect("the renewal succeeds");
        }
        for (at, tracker) in trackers.all.iter().enumerate() {
            if second % 5 == at as u64 {
                tracker.flush(clock(at, now)).await.expect("the flush succeeds");
            }
            assert_eq!(trackers.count(at, 1, clock(at, now)).await, 1, "tracker {at} after {second} s");
            assert_eq!(trackers.count(at, 2, clock(at, now)).await, 1, "tracker {at} after {second} s");
        }
    }
    // Without renewals all trackers consider a peer offline one lease later, by the clock of the last renewal.
    let late = START + ms(120_000) + LEASE + ms(10_000);
    for at in 0..3 {
        assert_eq!(trackers.count(at, 1, late).await, 0, "tracker {at}");
    }
}

async fn late_flush_keeps_a_later_renewal(connections: Connections) {
    let trackers = Trackers::open(connections).await;
    let [a, b, _] = &trackers.all;
    let peer = trackers.session(0, 1, START).await;
    trackers.publish(0, &peer, "a", 1, START).await;
    a.renew(peer.id, START + ms(10_000)).await.expect("the renewal succeeds");
    b.renew(peer.id, START + ms(20_000)).await.expect("the renewal succeeds");
    b.flush(START + ms(21_000)).await.expect("the flush succeeds");
    a.flush(START + ms(25_000)).await.expect("the flush succeeds");
    assert_eq!(trackers.count(2, 1, START + ms(20_000) + LEASE - ms(1)).await, 1);
}

async fn concurrent_publications_all_succeed(connections: Connections) {
    const EACH: u64 = 12;
    let trackers = &Trackers::open(connections).await;
    let at_once = (0..3u64).map(|at| async move {
        let by = trackers.session(at as usize, at as u8 + 1, START).await;
        let mut versions = Vec::new();
        for n in 0..EACH {
            versions.push(trackers.publish(at as usize, &by, "same", at * 100 + n, START + ms(n)).await);
        }
        versions
    });
    let versions: Vec<u64> = join_all(at_once).await.concat();
    let distinct: BTreeSet<u64> = versions.iter().copied().collect();
    assert_eq!(distinct, (1..=3 * EACH).collect(), "{versions:?}");
    let page = trackers.lookups[0].list("same", None, 100, None, START).await.expect("the scan succeeds");
    assert_eq!(page.files.len() as u64, 3 * EACH);
    // No number was allocated twice.
    let mut numbers = BTreeSet::new();
    for (_, raw) in trackers.storage.scan(FILES, KeyRange::all(), 2000).await.expect("the scan succeeds") {
        assert!(numbers.insert(layout::decode::<FileEntry>(FILES, &raw).expect("a valid entry").no.0));
    }
    for (_, raw) in trackers.storage.scan(PEERS, KeyRange::all(), 2000).await.expect("the scan succeeds") {
        assert!(numbers.insert(layout::read_peer(PEERS, &raw).expect("a valid number").0));
    }
    assert_eq!(numbers.len() as u64, 3 * EACH + 3);
}

async fn one_tracker_at_a_time_sweeps(connections: Connections) {
    let trackers = Trackers::open(connections).await;
    for (task, period) in [(Task::Sweep, ms(60_000)), (Task::Expire, ms(3_600_000))] {
        for round in 0..3 {
            // Clocks and timers of trackers differ by seconds.
            let at = |tracker: u64| START + (10 + round) * period + ms(tracker * 2000);
            let turns = trackers.all.iter().zip(0..).map(|(each, n)| each.take_turn(task, period, at(n)));
            let turns = join_all(turns).await.into_iter().map(|turn| turn.expect("the turn is decided"));
            assert_eq!(turns.filter(|mine| *mine).count(), 1);
        }
    }
    // Concurrent sweeps remove each peer once.
    for peer in 1..=20 {
        let session = trackers.session(0, peer, START).await;
        trackers.publish(0, &session, &format!("n{peer}"), peer.into(), START).await;
    }
    let sweeps = trackers.all.iter().map(|each| each.sweep_peers(START + RETENTION));
    let swept =
        join_all(sweeps).await.into_iter().map(|swept| swept.expect("the sweep succeeds").peers).sum::<u64>();
    assert_eq!(swept, 20);
    for space in [LEASES, PEERS, OFFERS, PROVIDERS] {
        assert_eq!(trackers.entries(space).await, 0, "{space:?}");
    }
}

async fn peer_returning_during_a_sweep_keeps_or_loses_all(connections: Connections) {
    let trackers = Trackers::open(connections).await;
    let [a, b, c] = &trackers.all;
    let late = START + RETENTION;
    let sessions: Vec<(u8, SessionId)> = join_all((1..=20).map(|peer| {
        let trackers = &trackers;
        async move {
            let session = trackers.session(0, peer, START).await;
            trackers.publish(0, &session, &format!("n{peer}"), peer.into(), START).await;
            (peer, session.id)
        }
    }))
    .await;
    let renewals = join_all(sessions.iter().map(|(_, session)| b.renew(*session, late)));
    let (renewed, swept) = tokio::join!(renewals, a.sweep_peers(late));
    let removed = swept.expect("the sweep succeeds").peers;
    let mut refused = 0;
    for ((peer, session), renewed) in sessions.iter().zip(renewed) {
        match renewed {
            // The peer keeps its offers and is visible although no tracker has flushed.
            Ok(_) => {
                c.renew(*session, late + ms(1)).await.expect("the session remains valid");
                assert_eq!(trackers.count(0, (*peer).into(), late).await, 1, "peer {peer}");
            }
            Err(CatalogueError::Unauthorized | CatalogueError::Replaced) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, removed, "each removed peer, and no other, lost its session");
}
