//! Soak test: a swarm of two trackers and 20 peers runs for an hour, as separate processes on loopback. Files are published,
//! downloaded, exported, removed and expire; peers are killed and restarted. Memory, file descriptors, threads and disk usage
//! of each process are sampled and must not grow.
//!
//!     cargo run --release -p enjambre-tests --example soak -- --minutes 60
//!
//! Processes that are never killed must not grow in memory, file descriptors and threads, and no node in disk usage, during
//! the second half of the run. Downloaded content is compared with the original, and all libraries are verified at the end.
//! Growth or wrong content fails the run. It uses about 2 % of a CPU core. The samples are read from `/proc` (Linux only).

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use clap::Parser;
use enjambre_tests::content::{hash_of, write_file};
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process_stats;
use enjambre_tests::setup::Setup;
use enjambre_tests::trend::Trend;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

/// The maximum number of files in the swarm.
const MAX_FILES: usize = 40;
/// The maximum number of files of a peer.
const MAX_FILES_PER_PEER: usize = 8;
const SIZES: [u64; 6] = [100, 4 << 10, 60 << 10, 300 << 10, 1 << 20, 3 << 20];
/// The number of samples of a run.
const SAMPLES: u32 = 360;
/// The time until a killed node is restarted.
const DOWNTIME: Duration = Duration::from_secs(15);
/// The interval between kills of peers.
const PEER_KILL_INTERVAL: Duration = Duration::from_secs(45);
/// The interval between kills of the second tracker.
const TRACKER_KILL_INTERVAL: Duration = Duration::from_secs(240);
/// The timeout of a clean shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(6);

#[derive(Debug, Parser)]
struct Options {
    /// Duration of the run
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// Number of peers
    #[arg(long, default_value_t = 20)]
    peers: usize,
    /// Setups of the peers, assigned in turn: sqlite, sqlite+files, sled, sled+files
    #[arg(long, value_delimiter = ',', default_value = "sqlite,sqlite+files,sqlite,sled+files,sqlite+files")]
    setups: Vec<String>,
    /// Milliseconds between commands
    #[arg(long, default_value_t = 1000)]
    every: u64,
    /// Seed of the run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Pause while this file exists, for example during other measurements
    #[arg(long, value_name = "FILE")]
    pause_while: Option<PathBuf>,
}

/// A metric of a node.
struct Metric {
    title: &'static str,
    /// Growth up to this value is ignored.
    tolerance: f64,
    trend: Trend,
}

/// Growth up to this share of the median during half a run is ignored.
const MAX_GROWTH: f64 = 0.15;

/// The metrics of a node.
struct Samples {
    /// Memory, file descriptors and threads, if the process is never killed.
    process: Option<[Metric; 3]>,
    disk: Metric,
}

impl Samples {
    fn new(permanent: bool) -> Self {
        let metric = |title, tolerance| Metric { title, tolerance, trend: Trend::default() };
        Self {
            process: permanent
                .then(|| [metric("memory", 4096.0), metric("open files", 12.0), metric("threads", 4.0)]),
            disk: metric("disk", 6.0 * 1024.0),
        }
    }

    fn take(&mut self, seconds: f64, pid: Option<u32>, folder: &Path) {
        if let (Some([memory, open_files, threads]), Some(pid)) = (&mut self.process, pid) {
            let values = [
                process_stats::memory(pid, "VmRSS"),
                process_stats::open_files(pid),
                process_stats::threads(pid),
            ];
            for (metric, value) in [memory, open_files, threads].into_iter().zip(values) {
                if let Some(value) = value {
                    metric.trend.push(seconds, value as f64);
                }
            }
        }
        self.disk.trend.push(seconds, process_stats::disk_kib(&folder.join("data")) as f64);
    }

    fn metrics(&self) -> impl Iterator<Item = &Metric> {
        self.process.iter().flatten().chain([&self.disk])
    }
}

struct Member {
    peer: Peer,
    setup: String,
    /// Whether the peer is never killed.
    permanent: bool,
    /// The time of the restart, while the peer is stopped.
    restart_at: Option<Duration>,
    /// The files of the peer, oldest first.
    held: VecDeque<String>,
    /// The files to remove after the restart.
    remove: Vec<String>,
    samples: Samples,
}

/// A file in the swarm.
struct SharedFile {
    hash: String,
    /// The path of the published file.
    source: PathBuf,
    publisher: usize,
}

#[derive(Debug, Default)]
struct Counts {
    published: u64,
    downloaded: u64,
    failed: u64,
    removed: u64,
    verified: u64,
    kills: u64,
}

struct Soak {
    world: World,
    random: SmallRng,
    members: Vec<Member>,
    files: BTreeMap<String, SharedFile>,
    next: u64,
    counts: Counts,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let world = World::default();
    let permanent_tracker = world.tracker_with("tracker-1", &["tracker.lease=10s", "tracker.retention=60s"]);
    let other_world = World::new("sled".parse().map_err(Error::msg)?);
    let killed_tracker =
        other_world.tracker_with("tracker-2", &["tracker.lease=10s", "tracker.retention=60s"]);
    let mut trackers = [(permanent_tracker, Samples::new(true)), (killed_tracker, Samples::new(false))];
    let worlds: Vec<World> = options
        .setups
        .iter()
        .map(|name| name.parse::<Setup>().map(World::new).map_err(Error::msg))
        .collect::<Result<_>>()?;
    let members = (0..options.peers)
        .map(|number| {
            let world = number % worlds.len();
            let endpoints = [&trackers[0].0, &trackers[1].0];
            let settings = ["download.provider_timeout=5s"];
            let peer = worlds[world].running_peer_with(&format!("peer-{number}"), &endpoints, &settings);
            let permanent = number < options.peers.div_ceil(2);
            Member {
                peer,
                setup: options.setups[world].clone(),
                permanent,
                restart_at: None,
                held: VecDeque::new(),
                remove: Vec::new(),
                samples: Samples::new(permanent),
            }
        })
        .collect();
    let mut soak = Soak {
        world,
        random: SmallRng::seed_from_u64(options.seed),
        members,
        files: BTreeMap::new(),
        next: 0,
        counts: Counts::default(),
    };
    soak.run(&options, &mut trackers);
    soak.finish(&trackers, f64::from(options.minutes) * 30.0)
}

impl Soak {
    fn run(&mut self, options: &Options, trackers: &mut [(Tracker, Samples); 2]) {
        let length = Duration::from_secs(60) * options.minutes;
        let (mut next_kill, mut next_tracker_kill, mut next_sample, mut minute) =
            (PEER_KILL_INTERVAL, TRACKER_KILL_INTERVAL, Duration::ZERO, 0);
        let mut tracker_restart = None;
        let started = Instant::now();
        let mut paused = Duration::ZERO;
        let mut next = Duration::ZERO;
        loop {
            let pause_start = Instant::now();
            while options.pause_while.as_ref().is_some_and(|file| file.exists()) {
                sleep(Duration::from_secs(1));
            }
            paused += pause_start.elapsed();
            let now = started.elapsed().saturating_sub(paused);
            if now >= length {
                return;
            }
            if now >= next_sample {
                next_sample += length / SAMPLES;
                self.sample(now, trackers);
            }
            if now.as_secs() / 60 > minute {
                minute = now.as_secs() / 60;
                println!("minute {minute}: {} files, {:?}", self.files.len(), self.counts);
            }
            if now >= next_kill {
                next_kill = now + PEER_KILL_INTERVAL;
                self.kill_random_peer(now);
            }
            self.restart_peers(now);
            if tracker_restart.is_some_and(|restart_at| now >= restart_at) {
                tracker_restart = None;
                trackers[1].0.start();
            } else if now >= next_tracker_kill {
                next_tracker_kill = now + TRACKER_KILL_INTERVAL;
                tracker_restart = Some(now + DOWNTIME);
                trackers[1].0.kill();
                self.counts.kills += 1;
            }
            self.work();
            next = (next + Duration::from_millis(options.every)).max(now);
            sleep(next.saturating_sub(started.elapsed().saturating_sub(paused)));
        }
    }

    fn sample(&mut self, now: Duration, trackers: &mut [(Tracker, Samples); 2]) {
        let seconds = now.as_secs_f64();
        for (tracker, samples) in trackers {
            let pid = samples.process.is_some().then(|| tracker.pid());
            samples.take(seconds, pid, tracker.folder());
        }
        for member in &mut self.members {
            let pid = member.permanent.then(|| member.peer.pid());
            member.samples.take(seconds, pid, member.peer.folder());
        }
    }

    fn kill_random_peer(&mut self, now: Duration) {
        let alive: Vec<_> = (0..self.members.len())
            .filter(|number| !self.members[*number].permanent && self.members[*number].restart_at.is_none())
            .collect();
        let Some(number) = alive.choose(&mut self.random) else { return };
        let member = &mut self.members[*number];
        if self.random.random_ratio(2, 3) {
            member.peer.kill();
        } else {
            member.peer.stop(Signal::TERM, SHUTDOWN_TIMEOUT).ok();
        }
        member.restart_at = Some(now + DOWNTIME);
        self.counts.kills += 1;
    }

    fn restart_peers(&mut self, now: Duration) {
        for number in 0..self.members.len() {
            let member = &mut self.members[number];
            if member.restart_at.is_some_and(|restart_at| now >= restart_at) {
                member.restart_at = None;
                member.peer.start();
                for name in std::mem::take(&mut member.remove) {
                    self.remove_from(number, &name);
                }
            }
        }
    }

    /// Runs a random command at a random peer.
    fn work(&mut self) {
        let alive: Vec<_> =
            (0..self.members.len()).filter(|number| self.members[*number].restart_at.is_none()).collect();
        let Some(number) = alive.choose(&mut self.random).copied() else { return };
        match self.random.random_range(0..10) {
            0..3 => self.publish(number),
            3..9 => self.fetch(number),
            _ => {
                let member = &self.members[number];
                let Some(name) = member.held.iter().collect::<Vec<_>>().choose(&mut self.random).copied()
                else {
                    return;
                };
                member.peer.run(["verify", name.as_str()]).ok();
                self.counts.verified += 1;
            }
        }
    }

    fn publish(&mut self, number: usize) {
        if self.files.len() >= MAX_FILES {
            let oldest = self.files.keys().next().cloned();
            oldest.into_iter().for_each(|name| self.remove_everywhere(&name));
        }
        self.limit_files(number);
        let name = format!("file-{:08}", self.next);
        let member = &mut self.members[number];
        let source = member.peer.folder().join(&name);
        let size = SIZES[self.next as usize % SIZES.len()];
        let hash = write_file(&source, size, self.next);
        let options: &[&str] = if self.next.is_multiple_of(2) { &["--copy"] } else { &[] };
        member.peer.publish(&source, options);
        member.held.push_back(name.clone());
        self.files.insert(name, SharedFile { hash, source, publisher: number });
        self.next += 1;
        self.counts.published += 1;
    }

    fn fetch(&mut self, number: usize) {
        let is_available = |name: &String| {
            self.members.iter().any(|member| member.restart_at.is_none() && member.held.contains(name))
        };
        let wanted: Vec<_> = self
            .files
            .keys()
            .filter(|name| !self.members[number].held.contains(*name) && is_available(name))
            .collect();
        let Some(name) = wanted.choose(&mut self.random).map(|name| (*name).clone()) else { return };
        self.limit_files(number);
        let member = &mut self.members[number];
        let to_path = self.random.random_ratio(1, 3);
        let path = member.peer.folder().join(format!("got-{name}"));
        let mut args = vec![OsStr::new("get"), OsStr::new(&name)];
        if to_path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        let output = member.peer.run(args);
        if output.status != Some(0) {
            // The providers may have just been killed, or not yet announced the file to a restarted tracker.
            assert!(matches!(output.status, Some(3 | 4)), "{output:?}");
            member.peer.run(["remove", name.as_str()]);
            self.counts.failed += 1;
            return;
        }
        member.held.push_back(name.clone());
        let hash = &self.files[&name].hash;
        if to_path {
            assert_eq!(&hash_of(&path), hash, "wrong content for {name}");
        } else {
            let path = self.world.path("exported");
            let args = [OsStr::new("export"), OsStr::new(&name), OsStr::new("-o"), path.as_os_str()];
            member.peer.run(args).ok();
            assert_eq!(&hash_of(&path), hash, "wrong exported content for {name}");
            fs::remove_file(&path).expect("cannot remove the output");
        }
        self.counts.downloaded += 1;
    }

    /// Removes the oldest files of a peer that has the maximum number. A file without other providers leaves the swarm.
    fn limit_files(&mut self, number: usize) {
        while self.members[number].held.len() >= MAX_FILES_PER_PEER {
            let name = self.members[number].held[0].clone();
            let holders = self.members.iter().filter(|member| member.held.contains(&name)).count();
            if holders > 1 { self.remove_from(number, &name) } else { self.remove_everywhere(&name) }
        }
    }

    /// Removes a file from all peers and from the swarm.
    fn remove_everywhere(&mut self, name: &str) {
        for number in 0..self.members.len() {
            if self.members[number].held.iter().any(|held| held == name) {
                if self.members[number].restart_at.is_some() {
                    self.members[number].held.retain(|held| held != name);
                    self.members[number].remove.push(name.to_owned());
                } else {
                    self.remove_from(number, name);
                }
            }
        }
        self.files.remove(name);
    }

    /// Removes a file from a peer.
    fn remove_from(&mut self, number: usize, name: &str) {
        let member = &mut self.members[number];
        member.held.retain(|held| held != name);
        member.peer.run(["remove", name]).ok();
        let folder = member.peer.folder();
        // `remove` keeps files outside the library.
        for path in [folder.join(name), folder.join(format!("got-{name}"))] {
            let _ = fs::remove_file(path);
        }
        self.counts.removed += 1;
    }

    fn finish(mut self, trackers: &[(Tracker, Samples); 2], half: f64) -> Result<()> {
        self.restart_peers(Duration::MAX);
        for member in &self.members {
            member.peer.run(["verify"]).ok();
        }
        for (name, file) in &self.files {
            let member = &self.members[file.publisher];
            if member.held.contains(name) && file.source.exists() {
                assert_eq!(hash_of(&file.source), file.hash, "published file {name} was modified");
            }
        }
        println!("\n{:?}\n", self.counts);
        println!(
            "| node | metric | median | max | growth in the second half |\n| --- | --- | ---: | ---: | ---: |"
        );
        let mut grown = Vec::new();
        let titles = ["tracker 1, sqlite".to_owned(), "tracker 2, sled (killed)".to_owned()];
        let nodes = titles.into_iter().zip(trackers.iter().map(|(_, samples)| samples));
        let peers = self.members.iter().enumerate().map(|(number, member)| {
            let killed = if member.permanent { "" } else { " (killed)" };
            (format!("peer {number}, {}{killed}", member.setup), &member.samples)
        });
        for (title, samples) in nodes.chain(peers) {
            for metric in samples.metrics() {
                let Some(growth) = metric.trend.since(half) else {
                    grown.push(format!("{title}: too few samples"));
                    continue;
                };
                let metric_title = metric.title;
                println!(
                    "| {title} | {metric_title} | {:.0} | {:.0} | {:+.1} |",
                    growth.median, growth.max, growth.increase
                );
                if !growth.is_flat(MAX_GROWTH, metric.tolerance) {
                    grown.push(format!("{title}: {metric_title} grew by {:.0}", growth.increase));
                }
            }
        }
        println!("\n(memory and disk in KiB)");
        ensure!(
            self.counts.failed * 5 <= self.counts.downloaded,
            "too many downloads failed: {:?}",
            self.counts
        );
        ensure!(grown.is_empty(), "growth detected:\n{}", grown.join("\n"));
        println!("no growth");
        Ok(())
    }
}
