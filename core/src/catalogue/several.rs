//! What must hold where several trackers work on one database: the obligations of the catalogue, whatever storage lies
//! beneath.
//!
//! Each case gets three ways into one fresh database, as three processes would have. The time is told, so nothing here
//! waits.

#![allow(clippy::expect_used, reason = "a failure is what a test is for")]

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::join_all;

use super::error::CatalogueError;
use super::layout::{FILES, FileEntry, LEASES, OFFERS, PEERS, PROVIDERS};
use super::leases::LeaseRules;
use super::peers::Session;
use super::{Catalogue, CatalogueRules, Task, layout};
use crate::model::id::{FileId, PeerId};
use crate::model::record::{FileKind, Offer, Publication};
use crate::protocol::message::SessionId;
use crate::storage::Storage;
use crate::storage::value::{KeyRange, Space};

const LEASE: u64 = 30_000;
const FRESH: u64 = 5_000;
const RETENTION: u64 = 1_000_000;
const START: u64 = 1_000_000_000;
const RULES: CatalogueRules = CatalogueRules {
    leases: LeaseRules { lease: LEASE, retention: RETENTION, settle: 120_000 },
    fresh: FRESH,
    max_peers: 10_000,
    max_versions: 1_000_000,
    cache: 1 << 20,
};

/// Three ways into one database.
pub type Ways = [Arc<dyn Storage>; 3];

struct Trackers {
    storage: Arc<dyn Storage>,
    all: [Catalogue; 3],
}

impl Trackers {
    async fn open(ways: Ways) -> Self {
        let storage = Arc::clone(&ways[0]);
        let [a, b, c] = ways.map(|way| Catalogue::open(way, RULES, START));
        let open = |opened: Result<Catalogue, _>| opened.expect("the catalogue opens");
        let (a, b, c) = tokio::join!(a, b, c);
        let all = [open(a), open(b), open(c)];
        assert!(all.iter().all(|each| each.id() == all[0].id()), "one database has one id");
        Self { storage, all }
    }

    async fn session(&self, at: usize, peer: u8, now: u64) -> Session {
        let endpoint = format!("tcp://10.0.0.{peer}:7710").parse().expect("an endpoint");
        let begun = self.all[at].hello(PeerId::from_bytes([peer; 32]), vec![endpoint], now).await;
        let id = begun.expect("a session begins");
        self.all[at].authorize(id, now).await.expect("a new session is good")
    }

    async fn publish(&self, at: usize, by: &Session, name: &str, n: u64, now: u64) -> u64 {
        let published = self.all[at].publish(by, &publication(name, n), now).await;
        published.expect("it is published").version
    }

    /// How many living peers have the file, as one of the trackers answers.
    async fn count(&self, at: usize, n: u64, now: u64) -> usize {
        let providers = self.all[at].providers_for(&file(n), true, now).await;
        providers.expect("providers are told").unwrap_or_default().len()
    }

    async fn entries(&self, space: Space) -> usize {
        self.storage.scan(space, KeyRange::all(), 2000).await.expect("a page").len()
    }
}

fn file(n: u64) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

fn publication(name: &str, n: u64) -> Publication {
    let name = name.parse().expect("a name");
    Publication { name, id: file(n), size: 10, kind: FileKind::File }
}

fn offer(n: u64) -> Offer {
    Offer { id: file(n), size: 10, complete: true }
}

/// Runs all cases, each on a database of its own.
///
/// # Panics
/// Where something does not hold.
pub async fn run_all(fresh: impl AsyncFn() -> Ways) {
    any_tracker_answers_for_all(fresh().await).await;
    a_session_is_good_at_every_tracker_until_a_newer_one_begins(fresh().await).await;
    who_renews_at_one_tracker_is_alive_at_all(fresh().await).await;
    a_late_write_does_not_undo_a_later_renewal(fresh().await).await;
    what_is_published_at_the_same_time_lands_everywhere(fresh().await).await;
    one_tracker_at_a_time_clears_away(fresh().await).await;
    who_comes_back_while_another_tracker_clears_away_loses_nothing_unnoticed(fresh().await).await;
}

async fn any_tracker_answers_for_all(ways: Ways) {
    let trackers = Trackers::open(ways).await;
    let publisher = trackers.session(0, 1, START).await;
    assert_eq!(trackers.publish(0, &publisher, "film", 1, START).await, 1);
    let other = trackers.session(1, 2, START).await;
    let unknown = trackers.all[1].announce(&other, &[offer(1)], START).await.expect("it is announced");
    assert!(unknown.is_empty(), "what was published at one tracker is known at the others");
    for (at, tracker) in trackers.all.iter().enumerate() {
        assert_eq!(trackers.count(at, 1, START).await, 2);
        let found = tracker.find("film", START).await.expect("it is found");
        assert_eq!((found.id, found.version, found.providers), (file(1), 1, 2));
        let page = tracker.list("f*", None, 10, START).await.expect("a page");
        assert_eq!(page.files.len(), 1);
    }
    // A newer version and a peer that leaves are seen as soon as what is remembered is too old.
    assert_eq!(trackers.publish(2, &publisher, "film", 2, START + 1).await, 2);
    trackers.all[2].leave(other.id, START + 1).await.expect("it leaves");
    for (at, tracker) in trackers.all.iter().enumerate() {
        let later = START + FRESH + 1;
        assert_eq!(tracker.find("film", later).await.expect("it is found").id, file(2));
        assert_eq!(trackers.count(at, 1, later).await, 1);
    }
}

async fn a_session_is_good_at_every_tracker_until_a_newer_one_begins(ways: Ways) {
    let trackers = Trackers::open(ways).await;
    let former = trackers.session(0, 1, START).await;
    trackers.publish(1, &former, "a", 1, START).await;
    for (n, tracker) in trackers.all.iter().enumerate() {
        tracker.renew(former.id, START + 1).await.expect("the session is good here too");
        let session = tracker.authorize(former.id, START + 1).await.expect("it is good");
        assert_eq!(session, former, "{n}");
    }
    // A clock that is behind makes a newer session all the same.
    let newer = trackers.session(1, 1, START - 7000).await;
    assert!(newer.began > former.began);
    for tracker in &trackers.all {
        let less = Offer { complete: false, ..offer(1) };
        let late = tracker.announce(&former, &[less], START + 2).await;
        assert!(matches!(late, Err(CatalogueError::Unauthorized)), "{late:?}");
        let late = tracker.leave(former.id, START + 2).await;
        assert!(matches!(late, Err(CatalogueError::Unauthorized)), "{late:?}");
        let late = tracker.renew(former.id, START + FRESH + 2).await;
        assert!(matches!(late, Err(CatalogueError::Unauthorized)), "{late:?}");
        tracker.renew(newer.id, START + FRESH + 2).await.expect("the newer session is good");
    }
    trackers.all[2].leave(newer.id, START + FRESH + 3).await.expect("it leaves");
    let late = trackers.all[0].renew(newer.id, START + 2 * FRESH + 4).await;
    assert!(matches!(late, Err(CatalogueError::Unauthorized)), "{late:?}");
}

/// Renewals every third of a lease, written down every 5 s at other moments by each tracker, clocks that differ by 5 s in
/// either direction, and a peer that changes from tracker to tracker.
async fn who_renews_at_one_tracker_is_alive_at_all(ways: Ways) {
    const CLOCKS: [u64; 3] = [5_000, 0, 10_000];
    let trackers = Trackers::open(ways).await;
    let clock = |at: usize, now: u64| now - 5_000 + CLOCKS[at];
    let stays = trackers.session(0, 1, clock(0, START)).await;
    trackers.publish(0, &stays, "a", 1, clock(0, START)).await;
    let moves = trackers.session(1, 2, clock(1, START)).await;
    trackers.publish(1, &moves, "b", 2, clock(1, START)).await;
    for second in 1..=120 {
        let now = START + second * 1000;
        if second % 10 == 0 {
            trackers.all[0].renew(stays.id, clock(0, now)).await.expect("it is renewed");
            let at = (second / 10 % 3) as usize;
            trackers.all[at].renew(moves.id, clock(at, now)).await.expect("it is renewed");
        }
        for (at, tracker) in trackers.all.iter().enumerate() {
            if second % 5 == at as u64 {
                tracker.flush(clock(at, now)).await.expect("renewals are written");
            }
            assert_eq!(trackers.count(at, 1, clock(at, now)).await, 1, "tracker {at} after {second} s");
            assert_eq!(trackers.count(at, 2, clock(at, now)).await, 1, "tracker {at} after {second} s");
        }
    }
    // Who is silent is dead everywhere, one lease later by the clock that wrote it.
    let late = START + 120_000 + LEASE + 10_000;
    for at in 0..3 {
        assert_eq!(trackers.count(at, 1, late).await, 0, "tracker {at}");
    }
}

async fn a_late_write_does_not_undo_a_later_renewal(ways: Ways) {
    let trackers = Trackers::open(ways).await;
    let [a, b, _] = &trackers.all;
    let peer = trackers.session(0, 1, START).await;
    trackers.publish(0, &peer, "a", 1, START).await;
    a.renew(peer.id, START + 10_000).await.expect("it is renewed");
    b.renew(peer.id, START + 20_000).await.expect("it is renewed");
    b.flush(START + 21_000).await.expect("renewals are written");
    a.flush(START + 25_000).await.expect("renewals are written");
    assert_eq!(trackers.count(2, 1, START + 20_000 + LEASE - 1).await, 1);
}

async fn what_is_published_at_the_same_time_lands_everywhere(ways: Ways) {
    const EACH: u64 = 12;
    let trackers = &Trackers::open(ways).await;
    let at_once = (0..3u64).map(|at| async move {
        let by = trackers.session(at as usize, at as u8 + 1, START).await;
        let mut versions = Vec::new();
        for n in 0..EACH {
            versions.push(trackers.publish(at as usize, &by, "same", at * 100 + n, START + n).await);
        }
        versions
    });
    let versions: Vec<u64> = join_all(at_once).await.concat();
    let distinct: BTreeSet<u64> = versions.iter().copied().collect();
    assert_eq!(distinct, (1..=3 * EACH).collect(), "{versions:?}");
    let page = trackers.all[0].list("same", None, 100, START).await.expect("a page");
    assert_eq!(page.files.len() as u64, 3 * EACH);
    // No number was given away twice.
    let mut numbers = BTreeSet::new();
    for (_, raw) in trackers.storage.scan(FILES, KeyRange::all(), 2000).await.expect("a page") {
        assert!(numbers.insert(layout::decode::<FileEntry>(FILES, &raw).expect("an entry").no.0));
    }
    for (_, raw) in trackers.storage.scan(PEERS, KeyRange::all(), 2000).await.expect("a page") {
        assert!(numbers.insert(layout::read_peer(PEERS, &raw).expect("a number").0));
    }
    assert_eq!(numbers.len() as u64, 3 * EACH + 3);
}

async fn one_tracker_at_a_time_clears_away(ways: Ways) {
    let trackers = Trackers::open(ways).await;
    for period in [60_000u64, 3_600_000] {
        for round in 0..3 {
            // Clocks and the moments at which trackers look differ by seconds.
            let at = |tracker: u64| START + 10 * period + round * period + tracker * 2000;
            let task = if period == 60_000 { Task::Sweep } else { Task::Forget };
            let turns = trackers.all.iter().zip(0..).map(|(each, n)| each.take_turn(task, period, at(n)));
            let turns = join_all(turns).await.into_iter().map(|turn| turn.expect("a turn"));
            assert_eq!(turns.filter(|mine| *mine).count(), 1);
        }
    }
    // And where two do it at the same time all the same, each peer is taken away once.
    for peer in 1..=20 {
        let session = trackers.session(0, peer, START).await;
        trackers.publish(0, &session, &format!("n{peer}"), peer.into(), START).await;
    }
    let sweeps = trackers.all.iter().map(|each| each.sweep_peers(START + RETENTION));
    let swept = join_all(sweeps).await.into_iter().map(|swept| swept.expect("a sweep").peers).sum::<u64>();
    assert_eq!(swept, 20);
    for space in [LEASES, PEERS, OFFERS, PROVIDERS] {
        assert_eq!(trackers.entries(space).await, 0, "{space:?}");
    }
}

async fn who_comes_back_while_another_tracker_clears_away_loses_nothing_unnoticed(ways: Ways) {
    let trackers = Trackers::open(ways).await;
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
    let removed = swept.expect("a sweep").peers;
    let mut refused = 0;
    for ((peer, session), renewed) in sessions.iter().zip(renewed) {
        match renewed {
            // Nothing of it went, and whoever looks sees it, though nobody has flushed.
            Ok(_) => {
                c.renew(*session, late + 1).await.expect("the session goes on");
                assert_eq!(trackers.count(0, (*peer).into(), late).await, 1, "peer {peer}");
            }
            Err(CatalogueError::Unauthorized) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, removed, "who is told that the session is good was not cleared away");
}
