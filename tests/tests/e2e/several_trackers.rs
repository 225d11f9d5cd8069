//! Several trackers on one PostgreSQL server behave as one tracker, even if trackers or the server crash.
//!
//! Three tracker processes serve 50 peers in the test process over TCP. The peers publish and download continuously, trackers are
//! killed and restarted, and the server crashes or fails over to a replica. A test takes about 20 s. For a longer run:
//!
//!     ENJAMBRE_SOAK_SECONDS=600 ENJAMBRE_SOAK_SEED=7 cargo test -p enjambre-tests --test e2e several_trackers -- --nocapture

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enjambre_core::{Dialer, Endpoint, FileId};
use enjambre_swarm::tracker_client::error::TrackerError;
use enjambre_swarm::tracker_client::trackers::Trackers;
use enjambre_tests::in_process_peer::InProcessPeer;
use enjambre_tests::node::{Tracker, World};
use enjambre_tests::postgres::{Server, Stop, USER};
use enjambre_tests::setup::{Setup, Wire};
use enjambre_tests::wait::{TIMEOUT, wait_for};
use enjambre_transport::settings::TransportSettings;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

const PEERS: u64 = 50;
const PIECES: usize = 300 * 1024;
/// A name that several peers publish at different trackers.
const SHARED: &str = "shared";
/// The duration of the outage of the server.
const OUTAGE: Duration = Duration::from_secs(2);
/// The maximum time from the recovery of the server to a successful lookup. The goal on an idle machine is 5 s.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A version that a tracker has acknowledged.
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
    ended: AtomicBool,
}

/// Publishes and downloads until the run ends.
async fn run_peer(peer: InProcessPeer, number: u64, seed: u64, ledger: Arc<Ledger>) -> InProcessPeer {
    let mut random = StdRng::seed_from_u64(seed ^ (number << 32));
    let mut count = 0;
    while !ledger.ended.load(Ordering::Relaxed) {
        count += 1;
        let mut content = vec![0; if count == 1 { PIECES } else { 1000 }];
        random.fill_bytes(&mut content);
        let own = format!("file-{number}-{count}");
        let name = if count % 3 == 0 { SHARED } else { &own };
        let publication = peer.add_file(name, &content).await.unwrap();
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
        let version = timeout(TIMEOUT, acknowledged).await.expect("the publication succeeds");
        let version = Version { name: name.to_owned(), version, id: publication.id };
        ledger.published.lock().push(version);

        let wanted = ledger.published.lock().choose(&mut random).cloned().unwrap();
        let query = wanted.id.to_string();
        let got = async {
            let file = loop {
                match peer.find(&query).await {
                    Ok(file) => break file,
                    // An acknowledged publication must be found.
                    Err(error @ TrackerError::NotFound { .. }) => panic!("{wanted:?}: {error}"),
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            };
            peer.get(&file).await.unwrap();
        };
        timeout(TIMEOUT, got).await.unwrap_or_else(|_| panic!("{wanted:?} could not be downloaded"));
        ledger.downloads.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(random.random_range(500..1500))).await;
    }
    peer
}

/// Kills and restarts one tracker at a time until the run ends. All trackers run afterwards.
fn kill_and_restart(mut trackers: Vec<Tracker>, seed: u64, ended: &AtomicBool) -> (Vec<Tracker>, u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut killed = 0;
    while !ended.load(Ordering::Relaxed) {
        let at = random.random_range(0..trackers.len());
        trackers[at].kill();
        killed += 1;
        std::thread::sleep(Duration::from_millis(random.random_range(200..2000)));
        trackers[at].start();
        std::thread::sleep(Duration::from_millis(random.random_range(500..3000)));
    }
    (trackers, killed)
}

fn new_client(endpoints: &[Endpoint]) -> Arc<Trackers> {
    let tcp = enjambre_transport::Shared::new(TransportSettings::default()).unwrap().tcp();
    Arc::new(Trackers::new(&Arc::new(Dialer::new(vec![tcp])), endpoints.iter().cloned()))
}

/// Checks that every tracker lists all acknowledged publications.
async fn check_catalogue(endpoints: &[Endpoint], ledger: &Ledger) {
    for endpoint in endpoints {
        let trackers = new_client(std::slice::from_ref(endpoint));
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
            "a version was allocated twice, with {shared} shared publications"
        );
    }
}

/// Runs trackers and peers, and calls `fault` in the middle. It returns the servers after one has recovered.
async fn run<S: Send + 'static>(name: &str, url: &str, fault: impl FnOnce() -> S + Send + 'static) {
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
        let peer = InProcessPeer::start(&order, TIMEOUT).await.unwrap();
        peers.spawn(run_peer(peer, number, seed, Arc::clone(&ledger)));
    }
    let chaos = {
        let ledger = Arc::clone(&ledger);
        spawn_blocking(move || kill_and_restart(trackers, seed, &ledger.ended))
    };
    sleep(Duration::from_secs(seconds / 2)).await;
    // The first publication takes longer on a loaded machine.
    let published = async {
        while ledger.published.lock().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, published).await.expect("a publication succeeds");
    let before = ledger.published.lock().clone();
    let servers = spawn_blocking(fault).await.unwrap();
    let recovered = Instant::now();
    // Negative results are not cached, so this lookup reads the database.
    let trackers = new_client(&endpoints);
    let found = async {
        loop {
            match trackers.find("absent").await {
                Err(TrackerError::NotFound { .. }) => break,
                Err(TrackerError::Unreachable { .. } | TrackerError::Refused { .. }) => {
                    sleep(Duration::from_millis(20)).await;
                }
                unexpected => panic!("{unexpected:?}"),
            }
        }
    };
    timeout(RECOVERY_TIMEOUT, found).await.expect("lookups succeed after the recovery");
    let recovery = recovered.elapsed();
    let providers = trackers.providers(&before.first().expect("there is a publication").id).await;
    assert!(!providers.unwrap().is_empty(), "peers with valid leases are providers");
    sleep(Duration::from_secs(seconds / 2)).await;
    ledger.ended.store(true, Ordering::Relaxed);
    let peers = peers.join_all().await;
    let (trackers, killed) = chaos.await.unwrap();
    check_catalogue(&endpoints, &ledger).await;
    let (published, downloads) = (ledger.published.lock().len(), ledger.downloads.load(Ordering::Relaxed));
    println!(
        "{name}: {published} publications ({} before), {downloads} downloads, {killed} trackers killed; lookups \
         succeeded {:.2} s after the server had recovered",
        before.len(),
        recovery.as_secs_f64(),
    );
    drop(peers);
    spawn_blocking(move || drop((trackers, world, servers))).await.unwrap();
}

/// Returns the URL of a primary server and its replicas.
fn url(servers: &[&Server]) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    format!("postgresql://{USER}@{}/postgres", hosts.join(","))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_files_survive_server_crash_and_kills() {
    let start = || Server::start("three trackers on PostgreSQL with a server crash", "");
    let Some(server) = spawn_blocking(start).await.unwrap() else { return };
    let at = url(&[&server]);
    run("server crash", &at, move || {
        server.stop(Stop::Immediate);
        std::thread::sleep(OUTAGE);
        server.start_again();
        server
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_files_survive_failover() {
    let start = || {
        let primary = Server::start("three trackers on PostgreSQL with a failover", "")?;
        let replica = primary.replica("standby");
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        primary.sql("SELECT pg_reload_conf()");
        wait_for("the replica is synchronous", TIMEOUT, || {
            primary.sql("SELECT sync_state FROM pg_stat_replication").trim() == "sync"
        });
        Some((primary, replica))
    };
    let Some((primary, replica)) = spawn_blocking(start).await.unwrap() else { return };
    let at = url(&[&primary, &replica]);
    run("failover to a synchronous replica", &at, move || {
        primary.stop(Stop::Immediate);
        std::thread::sleep(OUTAGE);
        replica.promote();
        (primary, replica)
    })
    .await;
}
