//! A swarm that works for an hour, or for as long as it is told to: two trackers and 20 peers, as separate processes on
//! loopback with real databases. Files are published, fetched, written out, removed and forgotten; peers are killed and
//! come back. Memory, descriptors, threads and what lies on the disk are sampled per process, and must not grow.
//!
//!     cargo run --release -p enjambre-tests --example soak -- --minutes 60
//!
//! A process that never dies must be flat in memory, descriptors and threads, and every node in what its data folder takes.
//! The trend is that of the second half. Everything that arrives is compared with what was sent, and in the end all
//! libraries are verified. What is not flat or not right fails the command. It takes about 2 % of a processor.
//! The figures come from `/proc`, so this is for Linux.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use clap::Parser;
use enjambre_tests::content::{hash_of, write_file};
use enjambre_tests::figures;
use enjambre_tests::node::{Peer, Setup, Tracker, World};
use enjambre_tests::trend::Trend;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

/// How many files there are at a time.
const FILES: usize = 40;
/// How many files a peer has at most.
const HELD: usize = 8;
const SIZES: [u64; 6] = [100, 4 << 10, 60 << 10, 300 << 10, 1 << 20, 3 << 20];
/// How many samples a run has.
const SAMPLES: u32 = 360;
/// How long a peer that died stays away, and how often one dies.
const AWAY: Duration = Duration::from_secs(15);
const DEATHS: Duration = Duration::from_secs(45);
/// How often one of the trackers dies.
const TRACKER_DEATHS: Duration = Duration::from_secs(240);
/// What a node may take to end after SIGTERM.
const LEAVE: Duration = Duration::from_secs(6);

#[derive(Debug, Parser)]
struct Options {
    /// How long
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// How many peers
    #[arg(long, default_value_t = 20)]
    peers: usize,
    /// What the peers have, in turn: sqlite, sqlite+files, sled, sled+files
    #[arg(long, value_delimiter = ',', default_value = "sqlite,sqlite+files,sqlite,sled+files,sqlite+files")]
    setups: Vec<String>,
    /// Milliseconds from one command to the next
    #[arg(long, default_value_t = 1000)]
    every: u64,
    /// What the choices are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stand still while there is a file of this name, so that something else can be measured on the machine
    #[arg(long, value_name = "FILE")]
    pause_while: Option<PathBuf>,
}

/// A figure of a node: what it is, what growth counts as nothing, and its samples.
struct Figure {
    title: &'static str,
    nothing: f64,
    trend: Trend,
}

/// What grows by less than this share of itself in half a run is flat.
const SHARE: f64 = 0.15;

/// The samples of a node.
struct Samples {
    /// Memory, descriptors and threads of its process; only of one that never dies.
    process: Option<[Figure; 3]>,
    disk: Figure,
}

impl Samples {
    fn new(stays: bool) -> Self {
        let figure = |title, nothing| Figure { title, nothing, trend: Trend::default() };
        Self {
            process: stays
                .then(|| [figure("memory", 4096.0), figure("handles", 12.0), figure("threads", 4.0)]),
            disk: figure("disk", 6.0 * 1024.0),
        }
    }

    fn take(&mut self, seconds: f64, pid: Option<u32>, folder: &std::path::Path) {
        if let (Some([memory, handles, threads]), Some(pid)) = (&mut self.process, pid) {
            let values = [figures::memory(pid, "VmRSS"), figures::handles(pid), figures::threads(pid)];
            for (figure, value) in [memory, handles, threads].into_iter().zip(values) {
                if let Some(value) = value {
                    figure.trend.push(seconds, value as f64);
                }
            }
        }
        self.disk.trend.push(seconds, figures::disk_kib(&folder.join("data")) as f64);
    }

    fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.process.iter().flatten().chain([&self.disk])
    }
}

struct Member {
    peer: Peer,
    setup: String,
    /// It never dies.
    stays: bool,
    /// When it comes back, while it is away.
    back: Option<Duration>,
    /// The files that it has, oldest first.
    held: VecDeque<String>,
    /// What it is to remove when it is back.
    remove: Vec<String>,
    samples: Samples,
}

/// A file that is in the swarm.
struct Shared {
    hash: String,
    /// Where it was published from.
    source: PathBuf,
    publisher: usize,
}

#[derive(Debug, Default)]
struct Counts {
    published: u64,
    fetched: u64,
    missed: u64,
    removed: u64,
    verified: u64,
    deaths: u64,
}

struct Soak {
    world: World,
    random: SmallRng,
    members: Vec<Member>,
    files: BTreeMap<String, Shared>,
    next: u64,
    counts: Counts,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let world = World::default();
    let lasting = world.tracker_with("tracker-1", &["tracker.lease=10s", "tracker.forget=60s"]);
    let other_world = World::new("sled".parse().map_err(Error::msg)?);
    let dying = other_world.tracker_with("tracker-2", &["tracker.lease=10s", "tracker.forget=60s"]);
    let mut trackers = [(lasting, Samples::new(true)), (dying, Samples::new(false))];
    let worlds: Vec<World> = options
        .setups
        .iter()
        .map(|name| name.parse::<Setup>().map(World::new).map_err(Error::msg))
        .collect::<Result<_>>()?;
    let members = (0..options.peers)
        .map(|number| {
            let place = number % worlds.len();
            let endpoints = [&trackers[0].0, &trackers[1].0];
            let settings = ["download.patience=5s"];
            let peer = worlds[place].running_peer_with(&format!("peer-{number}"), &endpoints, &settings);
            let stays = number < options.peers.div_ceil(2);
            Member {
                peer,
                setup: options.setups[place].clone(),
                stays,
                back: None,
                held: VecDeque::new(),
                remove: Vec::new(),
                samples: Samples::new(stays),
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
        let (mut death, mut tracker_death, mut sample, mut line) =
            (DEATHS, TRACKER_DEATHS, Duration::ZERO, 0);
        let mut tracker_back = None;
        let begun = Instant::now();
        let mut paused = Duration::ZERO;
        let mut next = Duration::ZERO;
        loop {
            let stopped = Instant::now();
            while options.pause_while.as_ref().is_some_and(|file| file.exists()) {
                sleep(Duration::from_secs(1));
            }
            paused += stopped.elapsed();
            let now = begun.elapsed().saturating_sub(paused);
            if now >= length {
                return;
            }
            if now >= sample {
                sample += length / SAMPLES;
                self.sample(now, trackers);
            }
            if now.as_secs() / 60 > line {
                line = now.as_secs() / 60;
                println!("minute {line}: {} files, {:?}", self.files.len(), self.counts);
            }
            if now >= death {
                death = now + DEATHS;
                self.kill_somebody(now);
            }
            self.bring_back(now);
            if tracker_back.is_some_and(|back| now >= back) {
                tracker_back = None;
                trackers[1].0.start();
            } else if now >= tracker_death {
                tracker_death = now + TRACKER_DEATHS;
                tracker_back = Some(now + AWAY);
                trackers[1].0.kill();
                self.counts.deaths += 1;
            }
            self.work();
            next = (next + Duration::from_millis(options.every)).max(now);
            sleep(next.saturating_sub(begun.elapsed().saturating_sub(paused)));
        }
    }

    fn sample(&mut self, now: Duration, trackers: &mut [(Tracker, Samples); 2]) {
        let seconds = now.as_secs_f64();
        for (tracker, samples) in trackers {
            let pid = samples.process.is_some().then(|| tracker.pid());
            samples.take(seconds, pid, tracker.folder());
        }
        for member in &mut self.members {
            let pid = member.stays.then(|| member.peer.pid());
            member.samples.take(seconds, pid, member.peer.folder());
        }
    }

    fn kill_somebody(&mut self, now: Duration) {
        let alive: Vec<_> = (0..self.members.len())
            .filter(|number| !self.members[*number].stays && self.members[*number].back.is_none())
            .collect();
        let Some(number) = alive.choose(&mut self.random) else { return };
        let member = &mut self.members[*number];
        if self.random.random_ratio(2, 3) {
            member.peer.kill();
        } else {
            member.peer.stop(Signal::TERM, LEAVE).ok();
        }
        member.back = Some(now + AWAY);
        self.counts.deaths += 1;
    }

    fn bring_back(&mut self, now: Duration) {
        for number in 0..self.members.len() {
            let member = &mut self.members[number];
            if member.back.is_some_and(|back| now >= back) {
                member.back = None;
                member.peer.start();
                for name in std::mem::take(&mut member.remove) {
                    self.drop_from(number, &name);
                }
            }
        }
    }

    /// One command, and what has to go for it.
    fn work(&mut self) {
        let alive: Vec<_> =
            (0..self.members.len()).filter(|number| self.members[*number].back.is_none()).collect();
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
        if self.files.len() >= FILES {
            let oldest = self.files.keys().next().cloned();
            oldest.into_iter().for_each(|name| self.retire(&name));
        }
        self.make_room(number);
        let name = format!("file-{:08}", self.next);
        let member = &mut self.members[number];
        let source = member.peer.folder().join(&name);
        let size = SIZES[self.next as usize % SIZES.len()];
        let hash = write_file(&source, size, self.next);
        let options: &[&str] = if self.next.is_multiple_of(2) { &["--store"] } else { &[] };
        member.peer.publish(&source, options);
        member.held.push_back(name.clone());
        self.files.insert(name, Shared { hash, source, publisher: number });
        self.next += 1;
        self.counts.published += 1;
    }

    fn fetch(&mut self, number: usize) {
        let somebody_has = |name: &String| {
            self.members.iter().any(|member| member.back.is_none() && member.held.contains(name))
        };
        let wanted: Vec<_> = self
            .files
            .keys()
            .filter(|name| !self.members[number].held.contains(*name) && somebody_has(name))
            .collect();
        let Some(name) = wanted.choose(&mut self.random).map(|name| (*name).clone()) else { return };
        self.make_room(number);
        let member = &mut self.members[number];
        let to_path = self.random.random_ratio(1, 3);
        let path = member.peer.folder().join(format!("got-{name}"));
        let mut args = vec![OsStr::new("get"), OsStr::new(&name)];
        if to_path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        let output = member.peer.run(args);
        if output.status != Some(0) {
            // Whoever had it may have died a moment ago, or the tracker has not heard of everybody again.
            assert!(matches!(output.status, Some(3 | 4)), "{output:?}");
            member.peer.run(["remove", name.as_str()]);
            self.counts.missed += 1;
            return;
        }
        member.held.push_back(name.clone());
        let hash = &self.files[&name].hash;
        if to_path {
            assert_eq!(&hash_of(&path), hash, "{name} arrived as another file");
        } else {
            let path = self.world.path("exported");
            let args = [OsStr::new("export"), OsStr::new(&name), OsStr::new("-o"), path.as_os_str()];
            member.peer.run(args).ok();
            assert_eq!(&hash_of(&path), hash, "{name} was exported as another file");
            fs::remove_file(&path).expect("it was just made");
        }
        self.counts.fetched += 1;
    }

    /// A peer that has as much as it may lets go of the oldest; if nobody else has that, it is gone.
    fn make_room(&mut self, number: usize) {
        while self.members[number].held.len() >= HELD {
            let name = self.members[number].held[0].clone();
            let holders = self.members.iter().filter(|member| member.held.contains(&name)).count();
            if holders > 1 { self.drop_from(number, &name) } else { self.retire(&name) }
        }
    }

    fn retire(&mut self, name: &str) {
        for number in 0..self.members.len() {
            if self.members[number].held.iter().any(|held| held == name) {
                if self.members[number].back.is_some() {
                    self.members[number].held.retain(|held| held != name);
                    self.members[number].remove.push(name.to_owned());
                } else {
                    self.drop_from(number, name);
                }
            }
        }
        self.files.remove(name);
    }

    /// One peer lets go of a file.
    fn drop_from(&mut self, number: usize, name: &str) {
        let member = &mut self.members[number];
        member.held.retain(|held| held != name);
        member.peer.run(["remove", name]).ok();
        let folder = member.peer.folder();
        // What was linked stays where it is, until here.
        for path in [folder.join(name), folder.join(format!("got-{name}"))] {
            let _ = fs::remove_file(path);
        }
        self.counts.removed += 1;
    }

    fn finish(mut self, trackers: &[(Tracker, Samples); 2], half: f64) -> Result<()> {
        self.bring_back(Duration::MAX);
        for member in &self.members {
            member.peer.run(["verify"]).ok();
        }
        for (name, file) in &self.files {
            let member = &self.members[file.publisher];
            if member.held.contains(name) && file.source.exists() {
                assert_eq!(hash_of(&file.source), file.hash, "the published file {name} changed");
            }
        }
        println!("\n{:?}\n", self.counts);
        println!(
            "| node | figure | median | most | grown in the second half |\n| --- | --- | ---: | ---: | ---: |"
        );
        let mut grown = Vec::new();
        let titles = ["tracker 1, sqlite".to_owned(), "tracker 2, sled (dies)".to_owned()];
        let nodes = titles.into_iter().zip(trackers.iter().map(|(_, samples)| samples));
        let peers = self.members.iter().enumerate().map(|(number, member)| {
            let dies = if member.stays { "" } else { " (dies)" };
            (format!("peer {number}, {}{dies}", member.setup), &member.samples)
        });
        for (title, samples) in nodes.chain(peers) {
            for figure in samples.figures() {
                let Some(growth) = figure.trend.since(half) else {
                    grown.push(format!("{title}: too few samples"));
                    continue;
                };
                let what = figure.title;
                println!(
                    "| {title} | {what} | {:.0} | {:.0} | {:+.1} |",
                    growth.median, growth.most, growth.grown
                );
                if !growth.is_flat(SHARE, figure.nothing) {
                    grown.push(format!("{title}: {what} grew by {:.0}", growth.grown));
                }
            }
        }
        println!("\n(memory and disk in KiB)");
        ensure!(
            self.counts.missed * 5 <= self.counts.fetched,
            "too many files could not be fetched: {:?}",
            self.counts
        );
        ensure!(grown.is_empty(), "not flat:\n{}", grown.join("\n"));
        println!("all of it is flat");
        Ok(())
    }
}
