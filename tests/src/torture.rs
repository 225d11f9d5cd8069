//! Random `kill -9` of a tracker and two peers while they publish, download, remove, renew, sweep and start.
//!
//! The test records what the processes acknowledged. After every restart each acknowledged publication is listed with its
//! id, each completed download has the correct content, `verify` finds no errors, an interrupted download has all pieces
//! that it reported as written, and no orphaned data remains. A violation panics. The seed determines the operations; the
//! exact moment of a kill also depends on the machine.

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
use crate::node::{Peer, Tracker, World};
use crate::process::{Output, Process};
use crate::setup::Setup;
use crate::wait::{TIMEOUT, wait_for, wait_until};

/// The number of rounds between two complete checks.
const ROUNDS_PER_CHECK: u32 = 20;
/// The number of downloaded files from which the downloading peer also removes files.
const MIN_FILES_TO_REMOVE: usize = 30;
const PIECE_SIZE: u64 = 256 * 1024;
const LARGE_SIZE: u64 = 24 * MIB;
const LARGE_NAME: &str = "large";

/// The numbers of operations.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Kills of a daemon at work.
    pub kills: u32,
    /// Kills of a daemon during startup.
    pub startup_kills: u32,
    /// Acknowledged publications.
    pub published: u32,
    /// Completed downloads.
    pub fetched: u32,
    /// Completed removals.
    pub removed: u32,
    /// Restarts after which an interrupted download had all reported bytes.
    pub resumed: u32,
}

struct Fetched {
    hash: String,
    /// The output path of a download that was not into the library.
    path: Option<PathBuf>,
}

struct Torture {
    world: World,
    random: SmallRng,
    tracker: Tracker,
    publisher: Peer,
    fetcher: Peer,
    next: u64,
    /// Hashes of acknowledged publications by name.
    published: BTreeMap<String, String>,
    /// Hashes by name of files in the library of the publisher that it has yet to publish at the tracker.
    pending: BTreeMap<String, String>,
    fetched: BTreeMap<String, Fetched>,
    /// Files whose removal was started and not acknowledged.
    removing: BTreeSet<String>,
    /// The download of the large file in progress, and its output path.
    large: Option<(Process, Option<PathBuf>)>,
    tally: Tally,
}

impl Drop for Torture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.keep();
        }
    }
}

/// A command in progress.
enum Action {
    Publish { name: String, hash: String },
    Fetch { name: String, hash: String, path: Option<PathBuf> },
    Remove { name: String },
}

/// Runs rounds until there were at least this many kills. Calls `each` after every complete check.
///
/// # Panics
/// Panics if acknowledged data is missing or wrong.
pub fn run(setup: Setup, kills: u32, seed: u64, mut each: impl FnMut(Tally)) -> Tally {
    let world = World::new(setup);
    let tracker = world.tracker_with("tracker", &["tracker.lease=400ms"]);
    let settings = ["download.provider_timeout=3s"];
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
        pending: BTreeMap::new(),
        fetched: BTreeMap::new(),
        removing: BTreeSet::new(),
        large: None,
        tally: Tally::default(),
        world,
    };
    let (path, hash) = torture.world.file(LARGE_NAME, LARGE_SIZE);
    torture.publisher.publish(&path, &[]);
    torture.published.insert(LARGE_NAME.to_owned(), hash);
    // Before the first kill, so that there is acknowledged data even on a slow machine.
    for _ in 0..3 {
        let (action, process) = torture.publish();
        torture.record(action, false, &process.wait(TIMEOUT));
    }
    while torture.fetched.len() < 2 {
        let (action, process) = torture.fetch().expect("at least two files are published");
        torture.record(action, false, &process.wait(TIMEOUT));
    }
    let mut round = 0;
    while torture.tally.kills + torture.tally.startup_kills < kills {
        torture.round();
        round += 1;
        if round % ROUNDS_PER_CHECK == 0 {
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
        self.download_large_file();
        sleep(self.delay());

        let [tracker, publisher, fetcher] = loop {
            let targets: [bool; 3] = std::array::from_fn(|_| self.random.random_bool(0.5));
            if targets.contains(&true) {
                break targets;
            }
        };
        // Kill commands before their daemon: a command without a running daemon does the work itself.
        let mut interrupted = Vec::new();
        for (action, process) in work {
            let killed = if matches!(action, Action::Publish { .. }) { publisher } else { fetcher };
            interrupted.push((action, killed, if killed { Err(process.kill()) } else { Ok(process) }));
        }
        let mut large_output = None;
        if fetcher && let Some((process, path)) = self.large.take() {
            large_output = Some((process.kill(), path));
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

        for (killed, node) in [(tracker, 0), (publisher, 1), (fetcher, 2)] {
            if killed {
                while self.random.random_bool(0.3) {
                    let after = Duration::from_micros(self.random.random_range(0..60_000));
                    match node {
                        0 => self.tracker.start_and_kill(after),
                        1 => self.publisher.start_and_kill(after),
                        _ => self.fetcher.start_and_kill(after),
                    }
                    self.tally.startup_kills += 1;
                }
                match node {
                    0 => self.tracker.start(),
                    1 => self.publisher.start(),
                    _ => self.fetcher.start(),
                }
            }
        }
        for (action, killed, process) in interrupted {
            let output = match process {
                Ok(process) => process.wait(TIMEOUT * 2),
                Err(output) => output,
            };
            self.record(action, killed || tracker, &output);
        }
        if let Some((output, path)) = large_output {
            self.check_large_file(&output, path);
        }
    }

    /// Returns the time until the next kill, mostly short enough to interrupt the commands of the round.
    fn delay(&mut self) -> Duration {
        let max_micros = match self.random.random_range(0..10) {
            0..5 => 30_000,
            5..9 => 150_000,
            _ => 500_000,
        };
        Duration::from_micros(self.random.random_range(0..max_micros))
    }

    fn publish(&mut self) -> (Action, Process) {
        let size = match self.random.random_range(0..10) {
            0..7 => self.random.random_range(1..64 * 1024),
            7..9 => self.random.random_range(PIECE_SIZE..MIB),
            _ => self.random.random_range(MIB..4 * MIB),
        };
        let name = format!("file-{}", self.next);
        self.next += 1;
        let path = self.world.path(&name);
        let hash = write_file(&path, size, self.next);
        let mut args = vec![OsStr::new("publish"), path.as_os_str()];
        if self.random.random_bool(0.5) {
            args.push(OsStr::new("--copy"));
        }
        let process = self.publisher.spawn(args);
        (Action::Publish { name, hash }, process)
    }

    fn fetch(&mut self) -> Option<(Action, Process)> {
        let wanted = |name: &&String| {
            *name != LARGE_NAME && !self.fetched.contains_key(*name) && !self.removing.contains(*name)
        };
        let wanted: Vec<_> = self.published.keys().filter(wanted).cloned().collect();
        let name = wanted.choose(&mut self.random)?.clone();
        let hash = self.published[&name].clone();
        let path = self.random.random_bool(0.3).then(|| self.world.path(format!("got-{name}")));
        let mut args = vec![OsStr::new("get"), OsStr::new(&name)];
        if let Some(path) = &path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        let process = self.fetcher.spawn(args);
        Some((Action::Fetch { name, hash, path }, process))
    }

    fn remove(&mut self) -> Option<(Action, Process)> {
        if self.fetched.len() < MIN_FILES_TO_REMOVE {
            return None;
        }
        let names: Vec<_> = self.fetched.keys().cloned().collect();
        let name = names.choose(&mut self.random)?.clone();
        self.fetched.remove(&name);
        self.removing.insert(name.clone());
        let process = self.fetcher.spawn(["remove", &name]);
        Some((Action::Remove { name }, process))
    }

    fn download_large_file(&mut self) {
        if self.large.is_some() || self.random.random_bool(0.5) {
            return;
        }
        // The same destination until the download is complete, so that it is resumed.
        let path = (self.tally.removed % 2 == 1).then(|| self.world.path("got-large"));
        let mut args = vec![OsStr::new("get"), OsStr::new(LARGE_NAME), OsStr::new("--json")];
        if let Some(path) = &path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        self.large = Some((self.fetcher.spawn(args), path));
    }

    fn record(&mut self, action: Action, killed: bool, output: &Output) {
        let done = output.status == Some(0);
        assert!(done || killed || output.status == Some(4), "unexpected failure without a kill: {output:?}");
        match action {
            Action::Publish { name, hash } if done => {
                self.published.insert(name, hash);
                self.tally.published += 1;
            }
            Action::Publish { name, hash } => {
                if output.status == Some(4) && output.stderr.contains("is in the library") {
                    self.pending.insert(name, hash);
                }
            }
            Action::Fetch { name, hash, path } if done => {
                if let Some(path) = &path {
                    assert_eq!(hash_of(path), hash, "wrong content for {name}");
                }
                self.fetched.insert(name, Fetched { hash, path });
                self.tally.fetched += 1;
            }
            Action::Fetch { name, .. } => {
                assert_ne!(output.status, Some(3), "published file {name} is not found: {output:?}");
            }
            Action::Remove { name } if done => {
                self.removing.remove(&name);
                self.tally.removed += 1;
            }
            Action::Remove { .. } => {}
        }
    }

    /// Checks that an interrupted download of the large file has all bytes that it reported as written.
    fn check_large_file(&mut self, output: &Output, path: Option<PathBuf>) {
        if output.status == Some(0) {
            self.finish_large_file(path);
            return;
        }
        let done = |line: &str| serde_json::from_str::<Value>(line).ok()?["done"].as_u64();
        let reported = output.stdout.lines().filter_map(done).max().unwrap_or(0);
        if reported == 0 {
            return;
        }
        let entry = self.fetcher.in_library(LARGE_NAME);
        let have = entry.and_then(|entry| entry["available_pieces"].as_u64()).unwrap_or(0) * PIECE_SIZE;
        assert!(have >= reported, "{reported} bytes were reported as written, but only {have} are present");
        self.tally.resumed += 1;
    }

    /// Compares the complete large file with the original, and removes it.
    fn finish_large_file(&mut self, path: Option<PathBuf>) {
        if let Some(path) = path {
            assert_eq!(hash_of(&path), self.published[LARGE_NAME]);
            self.fetcher.run(["remove", LARGE_NAME]).ok();
            fs::remove_file(&path).expect("cannot remove the output");
        } else {
            self.export_and_compare(LARGE_NAME, &self.published[LARGE_NAME].clone());
            self.fetcher.run(["remove", LARGE_NAME]).ok();
        }
        self.tally.removed += 1;
    }

    fn export_and_compare(&self, name: &str, hash: &str) {
        let path = self.world.path("exported");
        let args = [OsStr::new("export"), OsStr::new(name), OsStr::new("-o"), path.as_os_str()];
        self.fetcher.run(args).ok();
        assert_eq!(hash_of(&path), hash, "wrong content for {name}");
        fs::remove_file(&path).expect("cannot remove the output");
    }

    fn check(&mut self) {
        if let Some((process, path)) = self.large.take() {
            let output = process.wait(TIMEOUT * 2);
            // The provider may have just restarted, so the file may have been unavailable.
            if output.status == Some(0) {
                self.finish_large_file(path);
            }
        }
        // No publication is lost, and pending ones are published.
        let pending = std::mem::take(&mut self.pending);
        let listed = wait_until("publication of all pending files", TIMEOUT, || {
            let listed: BTreeMap<String, String> =
                self.fetcher.list().iter().map(|file| (text(file, "name"), text(file, "id"))).collect();
            pending.keys().all(|name| listed.contains_key(name)).then_some(listed)
        });
        for (name, hash) in &self.published {
            assert_eq!(listed.get(name), Some(hash), "{name} was acknowledged and is not listed");
        }
        for (name, hash) in pending {
            assert_eq!(listed.get(&name), Some(&hash), "{name} was pending");
            self.published.insert(name, hash);
        }
        // Complete files remain complete and correct.
        self.publisher.run(["verify"]).ok();
        self.fetcher.run(["verify"]).ok();
        let library = self.fetcher.run(["library", "--json"]).ok().json();
        let entries: BTreeMap<String, &Value> =
            library.iter().map(|entry| (text(entry, "name"), entry)).collect();
        for name in self.fetched.keys() {
            let entry = entries.get(name).unwrap_or_else(|| panic!("complete file {name} is missing"));
            assert_eq!(entry["available_pieces"], entry["pieces"], "{entry}");
        }
        self.removing.retain(|name| entries.contains_key(name));
        let sample: Vec<_> = self.fetched.iter().collect();
        for (name, Fetched { hash, path }) in sample.sample(&mut self.random, 5) {
            match path {
                Some(path) => assert_eq!(&hash_of(path), hash, "wrong content for {name}"),
                None => self.export_and_compare(name, hash),
            }
        }
        for node in [self.publisher.folder(), self.fetcher.folder()] {
            let content = node.join("data/content");
            let peer = if node == self.publisher.folder() { &self.publisher } else { &self.fetcher };
            wait_for("removal of orphaned content files", TIMEOUT, || {
                let library = peer.run(["library", "--json"]).ok().json();
                let files = library.iter().filter(|entry| entry["content"] == "files").count();
                count_files(&content) <= files
            });
        }
    }

    /// Stops all nodes and checks that the content databases contain no orphaned data.
    fn finish(&mut self) {
        let leftover = self.fetcher.run(["remove", LARGE_NAME]);
        assert!(matches!(leftover.status, Some(0 | 3)), "{leftover:?}");
        for peer in [&mut self.publisher, &mut self.fetcher] {
            let library = peer.run(["library", "--json"]).ok().json();
            let in_database = library.iter().filter(|entry| entry["content"] == "database");
            let expected: u64 = in_database.map(|entry| entry["size"].as_u64().unwrap_or(0)).sum();
            peer.stop(Signal::TERM, TIMEOUT).ok();
            let stats = peer.run(["storage", "stats", "--json"]).ok().json();
            let Some(content) = stats.iter().find(|stats| stats["database"] == "content") else { continue };
            let number = |key: &str| content[key].as_u64().unwrap_or(0);
            // Up to 64 bytes per entry for its key.
            let limit = expected + 64 * number("entries");
            assert!(
                number("bytes") <= limit,
                "orphaned content: {expected} bytes belong to the library, found {content}"
            );
        }
        self.tracker.stop(Signal::TERM, TIMEOUT).ok();
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
