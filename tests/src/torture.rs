//! A tracker and two peers that are killed at random moments while they publish, fetch, remove, renew, sweep and start.
//!
//! What was acknowledged is written down here, outside of them, and has to be there after every restart: each
//! publication is listed with its id, each download that was reported complete is complete and right, `verify` finds
//! nothing, what a download had reported as written is not fetched again, and nothing is left behind that belongs to
//! nobody. A difference ends the run with a panic. The choices are those of the seed; where a process is hit depends on
//! the machine as well.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;

use crate::content::{MIB, hash_of, write_file};
use crate::node::{Peer, Setup, Tracker, World};
use crate::process::{Output, Process};
use crate::wait::{LONG, wait_for, wait_until};

/// How many rounds lie between two looks at everything.
const ROUNDS: u32 = 20;
/// How many files the downloading peer keeps; older ones are removed.
const KEPT: usize = 30;
const PIECE: u64 = 256 * 1024;
const BIG: u64 = 24 * MIB;
const BIG_NAME: &str = "big";

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Daemons that were killed while they worked.
    pub kills: u32,
    /// Daemons that were killed while they started.
    pub starts: u32,
    /// Publications that were acknowledged.
    pub published: u32,
    /// Downloads that were reported complete.
    pub fetched: u32,
    /// Removals that were reported done.
    pub removed: u32,
    /// Restarts after which a download under way had all that it had reported.
    pub resumed: u32,
}

struct Fetched {
    hash: String,
    /// Where it is, if it was fetched to a path.
    path: Option<PathBuf>,
}

struct Torture {
    world: World,
    random: SmallRng,
    tracker: Tracker,
    publisher: Peer,
    fetcher: Peer,
    next: u64,
    /// Names and hashes of what was acknowledged.
    published: BTreeMap<String, String>,
    /// What the publisher said that it will publish when it reaches a tracker.
    promised: BTreeMap<String, String>,
    fetched: BTreeMap<String, Fetched>,
    /// Files of which a removal was begun and not reported.
    doubtful: BTreeSet<String>,
    /// The download under way and where to.
    big: Option<(Process, Option<PathBuf>)>,
    tally: Tally,
}

impl Drop for Torture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.keep();
        }
    }
}

/// A command under way, and what it means when it succeeds.
enum Doing {
    Publish { name: String, hash: String },
    Fetch { name: String, hash: String, path: Option<PathBuf> },
    Remove { name: String },
}

/// Kills daemons so often, or a little more; `each` is told how far it is.
///
/// # Panics
/// When something that was acknowledged is not there.
pub fn run(setup: Setup, kills: u32, seed: u64, mut each: impl FnMut(Tally)) -> Tally {
    let world = World::new(setup);
    let tracker = world.tracker_with("tracker", &["tracker.lease=400ms"]);
    let settings = ["download.patience=3s"];
    let publisher =
        world.running_peer_with("publisher", &[&tracker], &[settings[0], "limits.upload=\"64MB/s\""]);
    let fetcher = world.running_peer_with("fetcher", &[&tracker], &settings);
    let mut torture = Torture {
        random: SmallRng::seed_from_u64(seed),
        tracker,
        publisher,
        fetcher,
        next: 0,
        published: BTreeMap::new(),
        promised: BTreeMap::new(),
        fetched: BTreeMap::new(),
        doubtful: BTreeSet::new(),
        big: None,
        tally: Tally::default(),
        world,
    };
    let (big, hash) = torture.world.file(BIG_NAME, BIG);
    torture.publisher.publish(&big, &[]);
    torture.published.insert(BIG_NAME.to_owned(), hash);
    // Before anybody is killed, so that there is something to lose however slow the machine is.
    for _ in 0..3 {
        let (doing, process) = torture.publish();
        torture.note(doing, false, &process.wait(LONG));
    }
    while torture.fetched.len() < 2 {
        let (doing, process) = torture.fetch().expect("more than two are published");
        torture.note(doing, false, &process.wait(LONG));
    }
    let mut round = 0;
    while torture.tally.kills + torture.tally.starts < kills {
        torture.round();
        round += 1;
        if round % ROUNDS == 0 {
            torture.check();
            each(torture.tally);
        }
    }
    torture.check();
    torture.finish();
    torture.tally
}

impl Torture {
    fn round(&mut self) {
        let mut work = Vec::new();
        let publications = self.random.random_range(1..=2);
        for _ in 0..publications {
            work.push(self.publish());
        }
        work.extend(self.fetch());
        work.extend(self.remove());
        self.go_on_with_the_big_one();
        sleep(self.delay());

        let [tracker, publisher, fetcher] = loop {
            let victims: [bool; 3] = std::array::from_fn(|_| self.random.random_bool(0.5));
            if victims.contains(&true) {
                break victims;
            }
        };
        // The commands first: one whose daemon is gone would take its place.
        let mut over = Vec::new();
        for (doing, process) in work {
            let hit = if matches!(doing, Doing::Publish { .. }) { publisher } else { fetcher };
            over.push((doing, hit, if hit { Err(process.kill()) } else { Ok(process) }));
        }
        let mut big_done = None;
        if fetcher && let Some((process, path)) = self.big.take() {
            big_done = Some((process.kill(), path));
        }
        if tracker {
            self.tracker.kill();
        }
        if publisher {
            self.publisher.kill();
        }
        if fetcher {
            self.fetcher.kill();
        }
        self.tally.kills += u32::from(tracker) + u32::from(publisher) + u32::from(fetcher);

        for (hit, node) in [(tracker, 0), (publisher, 1), (fetcher, 2)] {
            if hit {
                while self.random.random_bool(0.3) {
                    let after = Duration::from_micros(self.random.random_range(0..60_000));
                    match node {
                        0 => self.tracker.start_and_kill(after),
                        1 => self.publisher.start_and_kill(after),
                        _ => self.fetcher.start_and_kill(after),
                    }
                    self.tally.starts += 1;
                }
                match node {
                    0 => self.tracker.start(),
                    1 => self.publisher.start(),
                    _ => self.fetcher.start(),
                }
            }
        }
        for (doing, hit, process) in over {
            let output = match process {
                Ok(process) => process.wait(LONG * 2),
                Err(output) => output,
            };
            self.note(doing, hit || tracker, &output);
        }
        if let Some((output, path)) = big_done {
            self.note_big(&output, path);
        }
    }

    /// How long the daemons work before they are hit: mostly in the middle of something, now and then after it.
    fn delay(&mut self) -> Duration {
        let most = match self.random.random_range(0..10) {
            0..5 => 30_000,
            5..9 => 150_000,
            _ => 500_000,
        };
        Duration::from_micros(self.random.random_range(0..most))
    }

    fn publish(&mut self) -> (Doing, Process) {
        let size = match self.random.random_range(0..10) {
            0..7 => self.random.random_range(1..64 * 1024),
            7..9 => self.random.random_range(PIECE..MIB),
            _ => self.random.random_range(MIB..4 * MIB),
        };
        let name = format!("file-{}", self.next);
        self.next += 1;
        let path = self.world.path(&name);
        let hash = write_file(&path, size, self.next);
        let mut args = vec![OsStr::new("publish"), path.as_os_str()];
        if self.random.random_bool(0.5) {
            args.push(OsStr::new("--store"));
        }
        let process = self.publisher.spawn(args);
        (Doing::Publish { name, hash }, process)
    }

    fn fetch(&mut self) -> Option<(Doing, Process)> {
        let wanted = |name: &&String| {
            *name != BIG_NAME && !self.fetched.contains_key(*name) && !self.doubtful.contains(*name)
        };
        // The newest, as it may not be announced again by who has just come back.
        let wanted: Vec<_> = self.published.keys().filter(wanted).cloned().collect();
        let name = wanted.choose(&mut self.random)?.clone();
        let hash = self.published[&name].clone();
        let path = self.random.random_bool(0.3).then(|| self.world.path(format!("got-{name}")));
        let mut args = vec![OsStr::new("get"), OsStr::new(&name)];
        if let Some(path) = &path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        let process = self.fetcher.spawn(args);
        Some((Doing::Fetch { name, hash, path }, process))
    }

    fn remove(&mut self) -> Option<(Doing, Process)> {
        if self.fetched.len() < KEPT {
            return None;
        }
        let names: Vec<_> = self.fetched.keys().cloned().collect();
        let name = names.choose(&mut self.random)?.clone();
        self.fetched.remove(&name);
        self.doubtful.insert(name.clone());
        let process = self.fetcher.spawn(["remove", &name]);
        Some((Doing::Remove { name }, process))
    }

    fn go_on_with_the_big_one(&mut self) {
        if self.big.is_some() || self.random.random_bool(0.5) {
            return;
        }
        // To the same path until it is there, so that it can go on.
        let path = (self.tally.removed % 2 == 1).then(|| self.world.path("got-big"));
        let mut args = vec![OsStr::new("get"), OsStr::new(BIG_NAME), OsStr::new("--json")];
        if let Some(path) = &path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        self.big = Some((self.fetcher.spawn(args), path));
    }

    fn note(&mut self, doing: Doing, hit: bool, output: &Output) {
        let done = output.status == Some(0);
        assert!(done || hit || output.status == Some(4), "nobody was killed, and yet: {output:?}");
        match doing {
            Doing::Publish { name, hash } if done => {
                self.published.insert(name, hash);
                self.tally.published += 1;
            }
            Doing::Publish { name, hash } => {
                if output.status == Some(4) && output.stderr.contains("is in the library") {
                    self.promised.insert(name, hash);
                }
            }
            Doing::Fetch { name, hash, path } if done => {
                if let Some(path) = &path {
                    assert_eq!(hash_of(path), hash, "{name} arrived as another file");
                }
                self.fetched.insert(name, Fetched { hash, path });
                self.tally.fetched += 1;
            }
            Doing::Fetch { name, .. } => {
                assert_ne!(output.status, Some(3), "what was published is not found: {name} {output:?}");
            }
            Doing::Remove { name } if done => {
                self.doubtful.remove(&name);
                self.tally.removed += 1;
            }
            Doing::Remove { .. } => {}
        }
    }

    /// What the download under way had reported must be there after the restart.
    fn note_big(&mut self, output: &Output, path: Option<PathBuf>) {
        if output.status == Some(0) {
            self.end_big(path);
            return;
        }
        let done = |line: &str| serde_json::from_str::<Value>(line).ok()?["done"].as_u64();
        let reported = output.stdout.lines().filter_map(done).max().unwrap_or(0);
        if reported == 0 {
            return;
        }
        let entry = self.fetcher.in_library(BIG_NAME);
        let have = entry.and_then(|entry| entry["have"].as_u64()).unwrap_or(0) * PIECE;
        assert!(have >= reported, "{reported} bytes were reported as written, and {have} are there");
        self.tally.resumed += 1;
    }

    fn end_big(&mut self, path: Option<PathBuf>) {
        if let Some(path) = path {
            assert_eq!(hash_of(&path), self.published[BIG_NAME]);
            self.fetcher.run(["remove", BIG_NAME]).ok();
            fs::remove_file(&path).expect("it is there");
        } else {
            self.export_and_compare(BIG_NAME, &self.published[BIG_NAME].clone());
            self.fetcher.run(["remove", BIG_NAME]).ok();
        }
        self.tally.removed += 1;
    }

    fn export_and_compare(&self, name: &str, hash: &str) {
        let path = self.world.path("exported");
        let args = [OsStr::new("export"), OsStr::new(name), OsStr::new("-o"), path.as_os_str()];
        self.fetcher.run(args).ok();
        assert_eq!(hash_of(&path), hash, "{name} is another file");
        fs::remove_file(&path).expect("it was just made");
    }

    fn check(&mut self) {
        if let Some((process, path)) = self.big.take() {
            let output = process.wait(LONG * 2);
            // Who had it may just have come back, so that it was not found or not reached.
            if output.status == Some(0) {
                self.end_big(path);
            }
        }
        // No publication is lost, and what was promised comes.
        let promised = std::mem::take(&mut self.promised);
        let listed = wait_until("all that was promised", LONG, || {
            let listed: BTreeMap<String, String> =
                self.fetcher.list().iter().map(|file| (text(file, "name"), text(file, "id"))).collect();
            promised.keys().all(|name| listed.contains_key(name)).then_some(listed)
        });
        for (name, hash) in &self.published {
            assert_eq!(listed.get(name), Some(hash), "{name} was acknowledged");
        }
        for (name, hash) in promised {
            assert_eq!(listed.get(&name), Some(&hash), "{name} was promised");
            self.published.insert(name, hash);
        }
        // Complete stays complete, and right.
        self.publisher.run(["verify"]).ok();
        self.fetcher.run(["verify"]).ok();
        let library = self.fetcher.run(["library", "--json"]).ok().json();
        let entries: BTreeMap<String, &Value> =
            library.iter().map(|entry| (text(entry, "name"), entry)).collect();
        for name in self.fetched.keys() {
            let entry = entries.get(name).unwrap_or_else(|| panic!("{name} was complete and is gone"));
            assert_eq!(entry["have"], entry["pieces"], "{entry}");
        }
        self.doubtful.retain(|name| entries.contains_key(name));
        let sample: Vec<_> = self.fetched.iter().collect();
        for (name, Fetched { hash, path }) in sample.sample(&mut self.random, 5) {
            match path {
                Some(path) => assert_eq!(&hash_of(path), hash, "{name}"),
                None => self.export_and_compare(name, hash),
            }
        }
        for node in [self.publisher.folder(), self.fetcher.folder()] {
            let content = node.join("data/content");
            let peer = if node == self.publisher.folder() { &self.publisher } else { &self.fetcher };
            wait_for("an end of the sweep", LONG, || {
                let library = peer.run(["library", "--json"]).ok().json();
                let files = library.iter().filter(|entry| entry["content"] == "files").count();
                count_files(&content) <= files
            });
        }
    }

    /// With everybody stopped in order: nothing is in the databases that belongs to nobody.
    fn finish(&mut self) {
        let leftover = self.fetcher.run(["remove", BIG_NAME]);
        assert!(matches!(leftover.status, Some(0 | 3)), "{leftover:?}");
        for peer in [&mut self.publisher, &mut self.fetcher] {
            let library = peer.run(["library", "--json"]).ok().json();
            let in_database = library.iter().filter(|entry| entry["content"] == "database");
            let expected: u64 = in_database.map(|entry| entry["size"].as_u64().unwrap_or(0)).sum();
            peer.stop(Signal::TERM, LONG).ok();
            let stats = peer.run(["storage", "stats", "--json"]).ok().json();
            let Some(content) = stats.iter().find(|stats| stats["database"] == "content") else { continue };
            let number = |key: &str| content[key].as_u64().unwrap_or(0);
            // Each entry has a key beside its value.
            let most = expected + 64 * number("entries");
            assert!(number("bytes") <= most, "{expected} bytes are known, and there are more: {content}");
        }
        self.tracker.stop(Signal::TERM, LONG).ok();
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn count_files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => count_files(&entry.path()),
        _ => 1,
    };
    entries.flatten().map(count).sum()
}
