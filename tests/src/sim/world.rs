//! A simulated swarm and the random generator that chooses its operations and faults.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::Endpoint;
use enjambre_core::runtime::clock::Clock;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_testkit::transport::fault::Faults;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::time::{sleep, timeout};

use super::clock::JumpingClock;
use super::faults::{self, DiskFaults};
use super::flaw::Flaw;
use super::malicious_tracker::MaliciousTracker;
use super::model::Model;
use super::peer::Peer;
use super::site::{Role, Site};
use super::trace::Trace;
use super::tracker::{Database, Tracker};

/// The timeout of operations that must end in spite of faults.
pub const TIMEOUT: Duration = Duration::from_secs(120);
/// The maximum clock jump in seconds. The sum of all jumps in a run stays below the retention of trackers.
const MAX_CLOCK_JUMP: u64 = 2 * 24 * 60 * 60;

/// A simulated swarm.
#[derive(Debug)]
pub struct World {
    /// Chooses operations and faults.
    pub random: StdRng,
    /// The log of all events.
    pub trace: Trace,
    /// The network between all nodes.
    pub network: MemoryNetwork,
    /// The clock of all trackers.
    pub clock: Arc<JumpingClock>,
    /// The databases of the trackers.
    pub databases: Vec<Database>,
    /// The trackers.
    pub trackers: Vec<Tracker>,
    /// The peers.
    pub peers: Vec<Peer>,
    /// A peer that sends false requests to trackers.
    pub(super) stranger: Site,
    /// A malicious tracker that all peers use, in some runs.
    pub(super) malicious_tracker: Option<MaliciousTracker>,
    /// The expected state.
    pub model: Arc<Mutex<Model>>,
    /// The directory of original files.
    pub(super) folder: tempfile::TempDir,
    pub(super) published: u32,
    pub(super) flaw: Option<Flaw>,
}

impl World {
    /// Creates the swarm of a seed without starting any node, optionally with a deliberate flaw.
    pub fn new(seed: u64, flaw: Option<Flaw>, print: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let databases = if random.random_bool(0.2) { 2 } else { 1 };
        let trackers = random.random_range(databases..=2);
        let peers: usize = random.random_range(3..=6);
        let misbehaving = if random.random_bool(0.3) { 1 } else { 0 };
        let network = MemoryNetwork::new();
        let mut site = |role, number| Site::new(&network, role, number, random.random(), flaw);
        // Trackers with a common catalogue have common pins, of which any of them may store the replica.
        let stores_replicas = trackers == databases;
        let tracker = |number, site| Tracker::new(number, number % databases, site, stores_replicas);
        let trackers = (0..trackers).map(|number| tracker(number, site(Role::Tracker, number))).collect();
        let peer = |number, site| Peer::new(number, number < misbehaving, site);
        let peers = (0..peers).map(|number| peer(number, site(Role::Peer, number))).collect();
        let stranger = site(Role::Stranger, 0);
        Self {
            trace: Trace::new(print),
            network,
            clock: Arc::new(JumpingClock::new()),
            databases: (0..databases).map(|_| Database::new(flaw)).collect(),
            trackers,
            peers,
            stranger,
            malicious_tracker: None,
            model: Arc::default(),
            folder: tempfile::tempdir().expect("cannot create a temporary directory"),
            published: 0,
            flaw,
            random,
        }
    }

    /// Records an event that is not specific to a node.
    pub fn note(&self, event: &str) {
        self.trace.note("*", format_args!("{event}"));
    }

    /// Starts all nodes and runs random operations and faults.
    pub async fn run_workload(&mut self) -> Result<(), String> {
        for at in 0..self.trackers.len() {
            self.start_tracker(at, DiskFaults::None).await;
        }
        if self.random.random_bool(0.3) {
            self.start_malicious_tracker().await?;
        }
        for at in 0..self.peers.len() {
            self.start_peer(at, false).await?;
        }
        let steps = self.random.random_range(40..120);
        for _ in 0..steps {
            let pause = self.random.random_range(0..3000);
            sleep(Duration::from_millis(pause)).await;
            timeout(TIMEOUT, self.step()).await.map_err(|_| "a step does not end".to_owned())??;
            if let Some(failure) = self.model.lock().failures.first() {
                return Err(failure.clone());
            }
            (0..self.peers.len()).try_for_each(|at| self.check_complete_files(at))?;
        }
        Ok(())
    }

    /// Checks that a running peer has all files that were acknowledged as complete.
    fn check_complete_files(&self, at: usize) -> Result<(), String> {
        let Some(running) = self.peers[at].running() else { return Ok(()) };
        let model = self.model.lock();
        for id in model.complete_at(at) {
            let original = &model.known[&id].original;
            if !running.is_complete(&id, original) {
                return Err(format!("{} lost the complete file {}", self.peers[at].name, original.name));
            }
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), String> {
        let peer = self.random.random_range(0..self.peers.len());
        let tracker = self.random.random_range(0..self.trackers.len());
        match self.random.random_range(0..107) {
            0..15 => self.publish_random(peer),
            15..37 => self.get_random(peer),
            37..43 => self.remove_random(peer).await,
            43..46 => self.find_random(peer),
            46..50 => self.checkpoint(peer),
            50..58 => self.crash_peer(peer).await?,
            58..62 => self.power_cut_peer(peer).await?,
            62..65 => self.stop_peer(peer).await?,
            65..71 => self.restart_tracker(tracker).await,
            71..75 => self.power_cut_database(tracker).await?,
            75..80 => self.change_network(peer),
            80..87 => self.change_disk(peer),
            87..91 => {
                let faults = DiskFaults::draw(&mut self.random);
                self.trace.note(&self.trackers[tracker].name, format_args!("database {faults:?}"));
                self.trackers[tracker].set_faults(faults);
            }
            91..95 => self.change_partition(peer),
            95..99 => self.contradict_random(tracker).await,
            99..102 => self.pin_missing_content(tracker).await,
            _ => {
                let by = Duration::from_secs(self.random.random_range(1..MAX_CLOCK_JUMP));
                let forward = self.random.random_bool(0.5);
                self.note(&format!("clock jumps by {by:?}, forward: {forward}"));
                self.clock.jump(by, forward);
            }
        }
        Ok(())
    }

    /// Starts a tracker. With faults the start may fail.
    pub async fn start_tracker(&mut self, at: usize, faults: DiskFaults) {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let seed = self.random.next_u64();
        let tracker = &mut self.trackers[at];
        let database = &self.databases[tracker.database];
        let started = tracker.start(database, &clock, &self.trace, &self.model, faults, seed).await;
        self.trace.note(&tracker.name, format_args!("start {started:?}"));
    }

    async fn start_malicious_tracker(&mut self) -> Result<(), String> {
        let secret = self.random.random();
        let site = Site::new(&self.network, Role::MaliciousTracker, 0, secret, self.flaw);
        let victim = self.random.random_range(0..self.trackers.len());
        let victim = &self.trackers[victim].site;
        let started = MaliciousTracker::start(&site, victim, &self.model, &mut self.random).await?;
        self.malicious_tracker = Some(started);
        Ok(())
    }

    async fn restart_tracker(&mut self, at: usize) {
        if self.trackers[at].is_up() {
            self.trace.note(&self.trackers[at].name, format_args!("kill"));
            self.trackers[at].kill().await;
            if self.random.random_bool(0.5) {
                return;
            }
        }
        let faults =
            if self.random.random_bool(0.2) { DiskFaults::draw(&mut self.random) } else { DiskFaults::None };
        self.start_tracker(at, faults).await;
    }

    async fn power_cut_database(&mut self, tracker: usize) -> Result<(), String> {
        let database = self.trackers[tracker].database;
        for at in 0..self.trackers.len() {
            if self.trackers[at].database == database {
                self.trackers[at].kill().await;
            }
        }
        let keeping = self.random.random_range(0..=self.databases[database].disk.unsynced());
        self.note(&format!("power cut of database {database}, keeping {keeping}"));
        self.databases[database].power_cut(keeping);
        self.check_stored_publications(database).await?;
        for at in 0..self.trackers.len() {
            if self.trackers[at].database == database {
                self.start_tracker(at, DiskFaults::None).await;
            }
        }
        Ok(())
    }

    /// Checks that a database contains every publication that its catalogue acknowledged. Must run before a peer can publish
    /// them again.
    async fn check_stored_publications(&self, database: usize) -> Result<(), String> {
        let now = self.clock.now();
        let catalogue = self.databases[database].catalogue(now).await?;
        let known = self.model.lock().known.clone();
        for (id, known) in known {
            for (name, by) in known.acknowledged {
                if by != catalogue.id() && self.databases.len() > 1 {
                    continue;
                }
                match catalogue.find(&name, now).await {
                    Ok(file) if file.id == id => {}
                    other => {
                        return Err(format!("{name} was acknowledged, but its catalogue returns {other:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts a peer and checks that it lost no data. With faults the start may fail.
    pub async fn start_peer(&mut self, at: usize, faults: bool) -> Result<(), String> {
        let (disk, network) = if faults {
            (DiskFaults::draw(&mut self.random), faults::network(&mut self.random))
        } else {
            (DiskFaults::None, Faults::default())
        };
        let mut trackers: Vec<Endpoint> =
            self.trackers.iter().map(|tracker| tracker.site.endpoint.clone()).collect();
        if let Some(malicious) = &self.malicious_tracker {
            trackers.insert(if malicious.is_first { 0 } else { trackers.len() }, malicious.endpoint.clone());
        }
        let seed = self.random.next_u64();
        let peer = &mut self.peers[at];
        let started = peer.start(&trackers, &self.trace, &self.model, (disk, network), self.flaw, seed).await;
        self.trace.note(&peer.name, format_args!("start {disk:?} {started:?}"));
        let Some(running) = peer.running() else {
            return if disk == DiskFaults::None { started } else { Ok(()) };
        };
        if let Some(lost) = self.model.lock().lost_pieces(at, &running.pieces()) {
            return Err(format!("{} lost pieces: {lost}", peer.name));
        }
        self.check_complete_files(at)
    }

    async fn crash_peer(&mut self, at: usize) -> Result<(), String> {
        if self.peers[at].running().is_some() {
            self.trace.note(&self.peers[at].name, format_args!("kill"));
            self.kill_peer(at).await;
            if self.random.random_bool(0.4) {
                return Ok(());
            }
        }
        let faults = self.random.random_bool(0.3);
        self.start_peer(at, faults).await
    }

    async fn power_cut_peer(&mut self, at: usize) -> Result<(), String> {
        self.cut_power(at).await;
        let faults = self.random.random_bool(0.2);
        self.start_peer(at, faults).await
    }

    /// Ends a peer like a power cut. A random part of the unsynced commits survives.
    pub async fn cut_power(&mut self, at: usize) {
        self.kill_peer(at).await;
        let peer = &self.peers[at];
        for disk in &peer.disks {
            let keeping = self.random.random_range(0..=disk.unsynced());
            self.trace.note(&peer.name, format_args!("power cut, keeping {keeping}"));
            disk.power_cut_keeping(keeping);
        }
        self.model.lock().power_cut(at);
    }

    async fn kill_peer(&mut self, at: usize) {
        if let Some(running) = self.peers[at].running() {
            self.model.lock().process_ended(at, &running.pieces());
        }
        self.peers[at].kill().await;
        let mut model = self.model.lock();
        model.getting.retain(|(peer, _)| *peer != at);
        model.publishing.retain(|(peer, _)| *peer != at);
    }

    async fn stop_peer(&mut self, at: usize) -> Result<(), String> {
        let peer = &mut self.peers[at];
        let Some(running) = peer.running() else { return Ok(()) };
        self.trace.note(&peer.name, format_args!("stop"));
        self.model.lock().process_ended(at, &running.pieces());
        timeout(TIMEOUT, peer.stop()).await.map_err(|_| format!("{} does not stop", peer.name))?;
        if self.random.random_bool(0.5) { Ok(()) } else { self.start_peer(at, false).await }
    }

    fn change_network(&mut self, at: usize) {
        let better = self.random.random_bool(0.4);
        let faults = if better { Faults::default() } else { faults::network(&mut self.random) };
        self.trace.note(&self.peers[at].name, format_args!("{faults:?}"));
        self.peers[at].set_network_faults(faults);
    }

    fn change_disk(&mut self, at: usize) {
        let faults = DiskFaults::draw(&mut self.random);
        self.trace.note(&self.peers[at].name, format_args!("disk {faults:?}"));
        self.peers[at].set_disk_faults(faults);
    }

    /// Isolates a peer from random nodes, in one or both directions, or reconnects it to all.
    fn change_partition(&mut self, at: usize) {
        let heal = self.random.random_bool(0.4);
        let both = self.random.random_bool(0.5);
        let own = self.peers[at].site.endpoint.clone();
        self.trace.note(&self.peers[at].name, format_args!("partition: {}, both directions: {both}", !heal));
        for other in 0..self.peers.len() {
            if heal || self.random.random_bool(0.5) {
                let endpoint = self.peers[other].site.endpoint.clone();
                self.peers[at].set_reachable(&endpoint, heal);
                if both || heal {
                    self.peers[other].set_reachable(&own, heal);
                }
            }
        }
        for tracker in 0..self.trackers.len() {
            if heal || self.random.random_bool(0.5) {
                let endpoint = self.trackers[tracker].site.endpoint.clone();
                self.peers[at].set_reachable(&endpoint, heal);
            }
        }
    }
}
