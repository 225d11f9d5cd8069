//! Several trackers on one PostgreSQL server are one tracker, whatever ends and comes back in the middle.
//!
//! Three trackers (processes), 50 peers in this one over TCP. Peers publish and download all the time, trackers are killed and
//! started, the server crashes and comes back, or its replica takes over. It takes about 20 s; for longer:
//!
//!     ENJAMBRE_SOAK_SECONDS=600 ENJAMBRE_SOAK_SEED=7 cargo test -p enjambre-tests --test several_trackers -- --nocapture

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::FileId;
use enjambre_core::tracker::error::TrackerError;
use enjambre_core::tracker::trackers::Trackers;
use enjambre_core::transport::dialer::Dialer;
use enjambre_tests::node::{Setup, Tracker, Wire, World};
use enjambre_tests::postgres::{Server, Stop, USER};
use enjambre_tests::resident::Resident;
use enjambre_tests::wait::{LONG, wait_for};
use enjambre_transport::settings::TransportSettings;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

const PEERS: u64 = 50;
const PIECES: usize = 300 * 1024;
/// A name that many publish at many trackers.
const SHARED: &str = "shared";
/// How long the server is away.
const AWAY: Duration = Duration::from_secs(2);
/// Within this a look-up has to work again; what is wanted is 5 s, on a machine that has nothing else to do.
const AGAIN: Duration = Duration::from_secs(30);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A version of a name that a tracker said it has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    name: String,
    version: u64,
    id: FileId,
}

#[derive(Debug, Default)]
struct Ledger {
    published: Mutex<Vec<Version>>,
    downloads: AtomicU64,
    over: AtomicBool,
}

/// Publishes and downloads until it is over.
async fn live(peer: Resident, number: u64, seed: u64, ledger: Arc<Ledger>) -> Resident {
    let mut random = StdRng::seed_from_u64(seed ^ (number << 32));
    let mut count = 0;
    while !ledger.over.load(Ordering::Relaxed) {
        count += 1;
        let mut content = vec![0; if count == 1 { PIECES } else { 1000 }];
        random.fill_bytes(&mut content);
        let own = format!("file-{number}-{count}");
        let name = if count % 3 == 0 { SHARED } else { &own };
        let publication = peer.keep(name, &content).await.unwrap();
        let acknowledged = async {
            loop {
                match peer.publish(&publication).await {
                    Ok(acknowledged) => return acknowledged.version,
                    Err(TrackerError::Unreachable { .. } | TrackerError::Refused { .. }) => {
                        sleep(Duration::from_millis(200)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let version = timeout(LONG, acknowledged).await.expect("a publication is made in the end");
        let version = Version { name: name.to_owned(), version, id: publication.id };
        ledger.published.lock().push(version);

        let wanted = ledger.published.lock().choose(&mut random).cloned().unwrap();
        let query = wanted.id.to_string();
        let got = async {
            let file = loop {
                match peer.find(&query).await {
                    Ok(file) => break file,
                    // What was acknowledged is never not found.
                    Err(error @ TrackerError::NotFound { .. }) => panic!("{wanted:?}: {error}"),
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            };
            peer.get(&file).await.unwrap();
        };
        timeout(LONG, got).await.unwrap_or_else(|_| panic!("{wanted:?} could not be downloaded"));
        ledger.downloads.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(random.random_range(500..1500))).await;
    }
    peer
}

/// Kills and starts trackers, one at a time, until it is over; all run at the end.
fn kill_and_start(mut trackers: Vec<Tracker>, seed: u64, over: &AtomicBool) -> (Vec<Tracker>, u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut killed = 0;
    while !over.load(Ordering::Relaxed) {
        let at = random.random_range(0..trackers.len());
        trackers[at].kill();
        killed += 1;
        std::thread::sleep(Duration::from_millis(random.random_range(200..2000)));
        trackers[at].start();
        std::thread::sleep(Duration::from_millis(random.random_range(500..3000)));
    }
    (trackers, killed)
}

fn asker(endpoints: &[Endpoint]) -> Arc<Trackers> {
    let tcp = enjambre_transport::tcp(TransportSettings::default()).unwrap();
    Arc::new(Trackers::new(&Arc::new(Dialer::new(vec![tcp])), endpoints.iter().cloned()))
}

/// Everything that was acknowledged is in the catalogue.
async fn all_is_there(endpoints: &[Endpoint], ledger: &Ledger) {
    for endpoint in endpoints {
        let trackers = asker(std::slice::from_ref(endpoint));
        let mut listing = trackers.list("");
        let mut listed = BTreeSet::new();
        while let Some(record) = listing.next().await.unwrap() {
            listed.insert(Version { name: record.name.to_string(), version: record.version, id: record.id });
        }
        let published = ledger.published.lock();
        let lost: Vec<_> = published.iter().filter(|version| !listed.contains(version)).collect();
        assert!(lost.is_empty(), "{endpoint} lost {lost:?}");
        let shared = published.iter().filter(|version| version.name == SHARED).count();
        let distinct: BTreeSet<_> = published.iter().map(|each| (&each.name, each.version)).collect();
        assert_eq!(
            distinct.len(),
            published.len(),
            "no version was given away twice, of {shared} shared ones"
        );
    }
}

/// Lets everything run, with what happens to the servers in the middle. That returns them when one is back.
async fn run<S: Send + 'static>(name: &str, url: &str, happens: impl FnOnce() -> S + Send + 'static) {
    let (seconds, seed) = (number("ENJAMBRE_SOAK_SECONDS", 10), number("ENJAMBRE_SOAK_SEED", 1));
    let (world, trackers) = {
        let url = format!("storage.postgres.url={url}");
        spawn_blocking(move || {
            let world = World::new(Setup { backend: "postgres", wire: Wire::Tcp, ..Setup::default() });
            let settings = [url.as_str(), "transport.limits.connections_per_address=1000"];
            let trackers: Vec<Tracker> =
                (0..3).map(|at| world.tracker_with(&format!("t{at}"), &settings)).collect();
            (world, trackers)
        })
        .await
        .unwrap()
    };
    let endpoints: Vec<Endpoint> =
        trackers.iter().map(|tracker| tracker.endpoint().parse().unwrap()).collect();
    let ledger = Arc::new(Ledger::default());
    let mut peers = JoinSet::new();
    for number in 0..PEERS {
        let mut order = endpoints.clone();
        order.rotate_left(number as usize % 3);
        let peer = Resident::start(&order, LONG).await.unwrap();
        peers.spawn(live(peer, number, seed, Arc::clone(&ledger)));
    }
    let chaos = {
        let ledger = Arc::clone(&ledger);
        spawn_blocking(move || kill_and_start(trackers, seed, &ledger.over))
    };
    sleep(Duration::from_secs(seconds / 2)).await;
    let before = ledger.published.lock().clone();
    let servers = spawn_blocking(happens).await.unwrap();
    let returned = Instant::now();
    // What is not there is not remembered, so the database has to be asked.
    let trackers = asker(&endpoints);
    let found = async {
        loop {
            match trackers.find("nowhere").await {
                Err(TrackerError::NotFound { .. }) => break,
                Err(TrackerError::Unreachable { .. } | TrackerError::Refused { .. }) => {
                    sleep(Duration::from_millis(20)).await;
                }
                unexpected => panic!("{unexpected:?}"),
            }
        }
    };
    timeout(AGAIN, found).await.expect("look-ups work again");
    let again = returned.elapsed();
    let providers = trackers.providers(&before.first().expect("something was published").id).await;
    assert!(!providers.unwrap().is_empty(), "those who were alive before are alive");
    sleep(Duration::from_secs(seconds / 2)).await;
    ledger.over.store(true, Ordering::Relaxed);
    let peers = peers.join_all().await;
    let (trackers, killed) = chaos.await.unwrap();
    all_is_there(&endpoints, &ledger).await;
    let (published, downloads) = (ledger.published.lock().len(), ledger.downloads.load(Ordering::Relaxed));
    println!(
        "{name}: {published} publications ({} before), {downloads} downloads, {killed} trackers killed; look-ups \
         worked again {:.2} s after the server was back",
        before.len(),
        again.as_secs_f64(),
    );
    drop(peers);
    spawn_blocking(move || drop((trackers, world, servers))).await.unwrap();
}

/// The URL of servers of which one takes writes.
fn url(servers: &[&Server]) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    format!("postgresql://{USER}@{}/postgres", hosts.join(","))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_server_crashes_and_trackers_are_killed() {
    let start = || Server::start("three trackers on PostgreSQL while it crashes", "");
    let Some(server) = spawn_blocking(start).await.unwrap() else { return };
    let at = url(&[&server]);
    run("the server crashed", &at, move || {
        server.stop(Stop::Immediate);
        std::thread::sleep(AWAY);
        server.start_again();
        server
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_a_synchronous_replica_takes_over() {
    let start = || {
        let primary = Server::start("three trackers on a replica that takes over", "")?;
        let replica = primary.replica("standby");
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        primary.sql("SELECT pg_reload_conf()");
        wait_for("the replica is a synchronous one", LONG, || {
            primary.sql("SELECT sync_state FROM pg_stat_replication").trim() == "sync"
        });
        Some((primary, replica))
    };
    let Some((primary, replica)) = spawn_blocking(start).await.unwrap() else { return };
    let at = url(&[&primary, &replica]);
    run("a synchronous replica took over", &at, move || {
        primary.stop(Stop::Immediate);
        std::thread::sleep(AWAY);
        replica.promote();
        (primary, replica)
    })
    .await;
}
