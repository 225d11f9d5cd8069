//! Trackers, peers and people who use them, and a generator that decides what happens next.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::clock::Clock;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::fault::Faults;
use enjambre_core::transport::memory::MemoryNetwork;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::time::{sleep, timeout};

use super::clock::JumpingClock;
use super::faults::{self, DiskFaults};
use super::flaw::Flaw;
use super::model::Model;
use super::peer::Peer;
use super::trace::Trace;
use super::tracker::{Database, Tracker};

/// How long something may take that is to end by itself, whatever is broken.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The most that a clock jumps. Less than what makes a tracker forget a file, so often as it happens.
const LONGEST_JUMP: u64 = 2 * 24 * 60 * 60;

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// Decides what happens.
    pub random: StdRng,
    /// What happened.
    pub trace: Trace,
    /// What connects all.
    pub network: MemoryNetwork,
    /// The clock of all trackers.
    pub clock: Arc<JumpingClock>,
    /// What trackers keep things in.
    pub databases: Vec<Database>,
    /// The trackers.
    pub trackers: Vec<Tracker>,
    /// The peers.
    pub peers: Vec<Peer>,
    /// What must be so.
    pub model: Arc<Mutex<Model>>,
    /// Where what is published lies first.
    pub(super) folder: tempfile::TempDir,
    pub(super) published: u32,
    flaw: Option<Flaw>,
}

impl World {
    /// The world of a seed, with everybody down, and perhaps with something in it that is broken.
    pub fn new(seed: u64, flaw: Option<Flaw>, print: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let databases = if random.random_bool(0.2) { 2 } else { 1 };
        let trackers = random.random_range(databases..=2);
        let peers: usize = random.random_range(3..=6);
        let liars = if random.random_bool(0.3) { 1 } else { 0 };
        Self {
            trace: Trace::new(print),
            network: MemoryNetwork::new(),
            clock: Arc::new(JumpingClock::new()),
            databases: (0..databases).map(|_| Database::new(flaw)).collect(),
            trackers: (0..trackers).map(|number| Tracker::new(number, number % databases)).collect(),
            peers: (0..peers).map(|number| Peer::new(number, number < liars, random.random())).collect(),
            model: Arc::default(),
            folder: tempfile::tempdir().expect("a folder can be made"),
            published: 0,
            flaw,
            random,
        }
    }

    /// Notes something that happens to all.
    pub fn note(&self, what: &str) {
        self.trace.note("*", format_args!("{what}"));
    }

    /// Lets everything happen that the seed wants.
    pub async fn live(&mut self) -> Result<(), String> {
        for at in 0..self.trackers.len() {
            self.start_tracker(at, DiskFaults::None).await;
        }
        for at in 0..self.peers.len() {
            self.start_peer(at, false).await?;
        }
        let steps = self.random.random_range(40..120);
        for _ in 0..steps {
            let pause = self.random.random_range(0..3000);
            sleep(Duration::from_millis(pause)).await;
            timeout(PATIENCE, self.step()).await.map_err(|_| "a step did not end".to_owned())??;
            if let Some(failure) = self.model.lock().failures.first() {
                return Err(failure.clone());
            }
            (0..self.peers.len()).try_for_each(|at| self.has_what_is_complete(at))?;
        }
        Ok(())
    }

    /// A peer that runs has everything that it was told to have in whole.
    fn has_what_is_complete(&self, at: usize) -> Result<(), String> {
        let Some(running) = self.peers[at].running() else { return Ok(()) };
        let model = self.model.lock();
        for id in model.complete_at(at) {
            let original = &model.known[&id].original;
            if !running.has_whole(&id, original) {
                return Err(format!("{} had all of {} and lost it", self.peers[at].name, original.name));
            }
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), String> {
        let peer = self.random.random_range(0..self.peers.len());
        let tracker = self.random.random_range(0..self.trackers.len());
        match self.random.random_range(0..100) {
            0..15 => self.publish_something(peer),
            15..37 => self.get_something(peer),
            37..43 => self.remove_something(peer).await,
            43..46 => self.find_something(peer),
            46..50 => self.checkpoint(peer),
            50..58 => self.crash_peer(peer).await?,
            58..62 => self.power_cut_peer(peer).await?,
            62..65 => self.stop_peer(peer).await?,
            65..71 => self.restart_tracker(tracker).await,
            71..75 => self.power_cut_database(tracker).await?,
            75..80 => self.change_weather(peer),
            80..87 => self.change_disk(peer),
            87..91 => {
                let faults = DiskFaults::draw(&mut self.random);
                self.trace.note(&self.trackers[tracker].name, format_args!("database {faults:?}"));
                self.trackers[tracker].set_faults(faults);
            }
            91..95 => self.part(peer),
            _ => {
                let by = Duration::from_secs(self.random.random_range(1..LONGEST_JUMP));
                let forward = self.random.random_bool(0.5);
                self.note(&format!("clock jumps by {by:?}, forward: {forward}"));
                self.clock.jump(by, forward);
            }
        }
        Ok(())
    }

    /// Starts a tracker; it may stay down.
    pub async fn start_tracker(&mut self, at: usize, faults: DiskFaults) {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let seed = self.random.next_u64();
        let tracker = &mut self.trackers[at];
        let database = &self.databases[tracker.database];
        let started = tracker.start(&self.network, database, &clock, faults, seed).await;
        self.trace.note(&tracker.name, format_args!("start {started:?}"));
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
        self.publications_are_stored(database).await?;
        for at in 0..self.trackers.len() {
            if self.trackers[at].database == database {
                self.start_tracker(at, DiskFaults::None).await;
            }
        }
        Ok(())
    }

    /// A database has every publication that its catalogue acknowledged, before any peer can have told it again.
    async fn publications_are_stored(&self, database: usize) -> Result<(), String> {
        let now = self.clock.now_ms();
        let catalogue = self.databases[database].catalogue(now).await?;
        let known = self.model.lock().known.clone();
        for (id, known) in known {
            for (name, by) in known.acknowledged {
                if by != catalogue.id() && self.databases.len() > 1 {
                    continue;
                }
                match catalogue.find(&name, now).await {
                    Ok(file) if file.id == id => {}
                    other => return Err(format!("{name} was acknowledged, and its catalogue has {other:?}")),
                }
            }
        }
        Ok(())
    }

    /// Starts a peer and looks whether it still has what it had. With faults it may stay down.
    pub async fn start_peer(&mut self, at: usize, faults: bool) -> Result<(), String> {
        let (disk, network) = if faults {
            (DiskFaults::draw(&mut self.random), faults::network(&mut self.random))
        } else {
            (DiskFaults::None, Faults::default())
        };
        let trackers: Vec<Endpoint> = self.trackers.iter().map(|tracker| tracker.endpoint.clone()).collect();
        let seed = self.random.next_u64();
        let peer = &mut self.peers[at];
        let started =
            peer.start(&self.network, &trackers, &self.trace, (disk, network), self.flaw, seed).await;
        self.trace.note(&peer.name, format_args!("start {disk:?} {started:?}"));
        let Some(running) = peer.running() else {
            return if disk == DiskFaults::None { started } else { Ok(()) };
        };
        if let Some(lost) = self.model.lock().lost(at, &running.pieces()) {
            return Err(format!("{} had more: {lost}", peer.name));
        }
        self.has_what_is_complete(at)
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

    /// Ends a peer as a power cut does. Of what was not synced some may be on its disks.
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
            self.model.lock().ends(at, &running.pieces());
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
        self.model.lock().ends(at, &running.pieces());
        timeout(PATIENCE, peer.stop()).await.map_err(|_| format!("{} did not stop", peer.name))?;
        if self.random.random_bool(0.5) { Ok(()) } else { self.start_peer(at, false).await }
    }

    fn change_weather(&mut self, at: usize) {
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

    /// Keeps a peer from reaching some others, perhaps in one direction only, or brings it together with all.
    fn part(&mut self, at: usize) {
        let heal = self.random.random_bool(0.4);
        let both = self.random.random_bool(0.5);
        let own = self.peers[at].endpoint.clone();
        self.trace.note(&self.peers[at].name, format_args!("parted: {}, both ways: {both}", !heal));
        for other in 0..self.peers.len() {
            if heal || self.random.random_bool(0.5) {
                let endpoint = self.peers[other].endpoint.clone();
                self.peers[at].set_reach(&endpoint, heal);
                if both || heal {
                    self.peers[other].set_reach(&own, heal);
                }
            }
        }
        for tracker in 0..self.trackers.len() {
            if heal || self.random.random_bool(0.5) {
                let endpoint = self.trackers[tracker].endpoint.clone();
                self.peers[at].set_reach(&endpoint, heal);
            }
        }
    }
}
