//! A tracker and a peer that are attacked, somebody honest, and what is looked at.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use enjambre_core::model::id::FileId;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::figures;
use enjambre_tests::node::{Peer, Tracker, Wire, World};
use enjambre_tests::wait::{LONG, wait_for};

/// What the log has at most of lines about cut off connections in a period, and how long that is.
const LINES: u64 = 10;
const PERIOD: Duration = Duration::from_secs(10);
/// How many handles more than before a process may have afterwards: databases open some as they need them.
const LEFT_OPEN: u64 = 16;

/// Who is attacked.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) endpoint: String,
    pub(crate) pid: u32,
    handles: u64,
}

impl Target {
    /// How many more handles it has open than before the attack.
    pub(crate) fn more_handles(&self) -> u64 {
        figures::handles(self.pid).unwrap().saturating_sub(self.handles)
    }

    /// Waits until it has closed what the attack made it open.
    #[track_caller]
    pub(crate) fn wait_released(&self) {
        wait_for("closing what nobody uses any more", LONG, || self.more_handles() <= LEFT_OPEN);
    }

    /// It never had more memory than that in MiB.
    #[track_caller]
    pub(crate) fn assert_memory(&self, most: u64) {
        let peak = figures::memory(self.pid, "VmHWM").unwrap() / 1024;
        println!("{}: at most {peak} MiB of {most}", self.endpoint);
        assert!(peak < most, "{}: {peak} MiB", self.endpoint);
    }
}

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) tracker: Tracker,
    pub(crate) peer: Peer,
    hash: String,
    begun: Instant,
    honest: AtomicU32,
}

impl Scene {
    /// Both run with these settings, and the peer offers `film.bin`.
    pub(crate) fn new(wire: Wire, settings: &[&str]) -> Self {
        let world = World::over(wire);
        let begun = Instant::now();
        let (file, hash) = world.file("film.bin", 8 * MIB);
        let tracker = world.tracker_with("tracker", settings);
        let peer = world.running_peer_with("peer", &[&tracker], settings);
        peer.publish(&file, &[]);
        Self { world, tracker, peer, hash, begun, honest: AtomicU32::new(0) }
    }

    /// The id of the file.
    pub(crate) fn film(&self) -> FileId {
        self.hash.parse().unwrap()
    }

    pub(crate) fn targets(&mut self) -> [Target; 2] {
        let target = |pid, endpoint: &str| Target {
            endpoint: endpoint.to_owned(),
            pid,
            handles: figures::handles(pid).unwrap(),
        };
        let tracker = target(self.tracker.pid(), self.tracker.endpoint());
        [tracker, target(self.peer.pid(), self.peer.endpoint())]
    }

    /// Somebody honest, from an address that attacks nobody, looks things up and downloads.
    #[track_caller]
    pub(crate) fn serves_others(&self) {
        let number = self.honest.fetch_add(1, Ordering::Relaxed);
        let honest = self.world.peer(&format!("honest-{number}"), &[&self.tracker]);
        for _ in 0..2 {
            assert!(honest.listed("film.bin").is_some());
        }
        let path = self.world.path(format!("got-{number}.bin"));
        honest.get_to("film.bin", &path);
        assert_eq!(hash_of(&path), self.hash);
    }

    /// What the logs of both say about connections that were cut off. It is not much, whatever there was.
    #[track_caller]
    pub(crate) fn cut_off(&mut self) -> [Vec<String>; 2] {
        let logs = [self.tracker.stderr_text(), self.peer.stderr_text()];
        let most = LINES * (self.begun.elapsed().as_secs() / PERIOD.as_secs() + 2);
        logs.map(|log| {
            let lines = log.lines().filter(|line| line.contains("connection cut off"));
            let lines: Vec<String> = lines.map(ToOwned::to_owned).collect();
            assert!(lines.len() as u64 <= most, "{} lines, more than {most}", lines.len());
            assert!(lines.iter().all(|line| line.contains("remote=") && line.contains("reason=")));
            lines
        })
    }
}

/// An address from which nobody honest comes; each number has its own.
pub(crate) fn stranger(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 251, (number / 250) as u8, (1 + number % 250) as u8)
}

/// What goes on in threads of its own until it is ended.
pub(crate) struct Attack {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

/// Tells an attack when it is over.
#[derive(Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The same a moment later: how fast a patient attacker goes.
    pub(crate) fn is_over_soon(&self) -> bool {
        thread::park_timeout(Duration::from_millis(20));
        self.is_over()
    }
}

impl Attack {
    /// So many threads, which count what they do.
    pub(crate) fn start(threads: usize, work: impl Fn(usize, Stop) -> u64 + Clone + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |number| {
            let (work, stop) = (work.clone(), Stop(Arc::clone(&stop)));
            thread::spawn(move || work(number, stop))
        };
        Self { threads: (0..threads).map(start).collect(), stop }
    }

    /// Ends it; what was counted. It must have gone on until now.
    #[track_caller]
    pub(crate) fn end(mut self) -> u64 {
        assert!(self.threads.iter().all(|thread| !thread.is_finished()), "the attack ended too early");
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().expect("an attack goes to its end")).sum()
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
