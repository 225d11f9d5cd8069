//! A tracker and a peer under attack, honest clients, and checks of resources and logs.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use enjambre_core::FileId;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process_stats;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};

/// The maximum number of log lines about aborted connections in a period.
const LINES: u64 = 10;
const PERIOD: Duration = Duration::from_secs(10);
/// The number of additional handles that a process may have after an attack, for example of databases.
const HANDLE_TOLERANCE: u64 = 16;

/// A process under attack.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) endpoint: String,
    pub(crate) pid: u32,
    handles: u64,
}

impl Target {
    /// Returns the number of file handles that were opened during the attack.
    pub(crate) fn more_handles(&self) -> u64 {
        process_stats::open_files(self.pid).unwrap().saturating_sub(self.handles)
    }

    /// Waits until the process has closed the connections of the attack.
    #[track_caller]
    pub(crate) fn wait_released(&self) {
        wait_for("the release of file handles", TIMEOUT, || self.more_handles() <= HANDLE_TOLERANCE);
    }

    /// Checks the peak memory of the process in MiB.
    #[track_caller]
    pub(crate) fn assert_memory(&self, limit: u64) {
        let peak = process_stats::memory(self.pid, "VmHWM").unwrap() / 1024;
        println!("{}: peak memory {peak} MiB, limit {limit} MiB", self.endpoint);
        assert!(peak < limit, "{}: {peak} MiB", self.endpoint);
    }
}

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) tracker: Tracker,
    pub(crate) peer: Peer,
    hash: String,
    started: Instant,
    honest_clients: AtomicU32,
}

impl Scene {
    /// Starts a tracker and a peer that provides `film.bin`.
    pub(crate) fn new(wire: Wire, settings: &[&str]) -> Self {
        let world = World::over(wire);
        let started = Instant::now();
        let (file, hash) = world.file("film.bin", 8 * MIB);
        let tracker = world.tracker_with("tracker", settings);
        let peer = world.running_peer_with("peer", &[&tracker], settings);
        peer.publish(&file, &[]);
        Self { world, tracker, peer, hash, started, honest_clients: AtomicU32::new(0) }
    }

    /// Returns the id of `film.bin`.
    pub(crate) fn film(&self) -> FileId {
        self.hash.parse().unwrap()
    }

    /// Returns the tracker and the peer.
    pub(crate) fn targets(&mut self) -> [Target; 2] {
        let target = |pid, endpoint: &str| Target {
            endpoint: endpoint.to_owned(),
            pid,
            handles: process_stats::open_files(pid).unwrap(),
        };
        let tracker = target(self.tracker.pid(), self.tracker.endpoint());
        [tracker, target(self.peer.pid(), self.peer.endpoint())]
    }

    /// Checks that an honest client from another address can list and download the file.
    #[track_caller]
    pub(crate) fn check_service(&self) {
        let number = self.honest_clients.fetch_add(1, Ordering::Relaxed);
        let honest = self.world.peer(&format!("honest-{number}"), &[&self.tracker]);
        for _ in 0..2 {
            assert!(honest.listed("film.bin").is_some());
        }
        let path = self.world.path(format!("got-{number}.bin"));
        honest.get_to("film.bin", &path);
        assert_eq!(hash_of(&path), self.hash);
    }

    /// Returns the log lines of both processes about aborted connections, and checks that their number is bounded.
    #[track_caller]
    pub(crate) fn aborted_connections(&mut self) -> [Vec<String>; 2] {
        let logs = [self.tracker.stderr_text(), self.peer.stderr_text()];
        let limit = LINES * (self.started.elapsed().as_secs() / PERIOD.as_secs() + 2);
        logs.map(|log| {
            let lines = log.lines().filter(|line| line.contains("connection aborted"));
            let lines: Vec<String> = lines.map(ToOwned::to_owned).collect();
            assert!(lines.len() as u64 <= limit, "{} lines, more than {limit}", lines.len());
            assert!(lines.iter().all(|line| line.contains("remote=") && line.contains("reason=")));
            lines
        })
    }
}

/// Returns a loopback address that honest clients do not use.
pub(crate) fn attacker_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 251, (number / 250) as u8, (1 + number % 250) as u8)
}

/// An attack by several threads.
pub(crate) struct Attack {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

/// The stop signal of an attack.
#[derive(Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Pauses for a moment to limit the rate of the attack, and returns whether it is stopped.
    pub(crate) fn pause(&self) -> bool {
        thread::park_timeout(Duration::from_millis(20));
        self.is_stopped()
    }
}

impl Attack {
    /// Starts threads that each return a count.
    pub(crate) fn start(threads: usize, work: impl Fn(usize, Stop) -> u64 + Clone + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |number| {
            let (work, stop) = (work.clone(), Stop(Arc::clone(&stop)));
            thread::spawn(move || work(number, stop))
        };
        Self { threads: (0..threads).map(start).collect(), stop }
    }

    /// Stops the attack and returns the sum of the counts.
    ///
    /// # Panics
    /// Panics if a thread has already ended.
    #[track_caller]
    pub(crate) fn stop(mut self) -> u64 {
        assert!(self.threads.iter().all(|thread| !thread.is_finished()), "the attack ended too early");
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().expect("the attack succeeds")).sum()
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
