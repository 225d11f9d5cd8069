//! A tracker and two peers on a file system in a file, which is copied while they work. What the copy has is what a disk
//! would have after a power cut: they go on with it, and what was acknowledged as durable must be there.
//!
//! The processes are stopped (SIGSTOP) while the file is copied, so that nobody is told anything in between. What was not
//! synced by then is mostly not in the file: the file system writes back seldom. Everything is killed then, and the copy
//! is mounted in the place of the original.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use crate::content::{MIB, hash_of, write_file};
use crate::mount::{Mount, make_ext4};
use crate::node::{Peer, Setup, Tracker, World};
use crate::process::Process;
use crate::wait::LONG;

const DISK: u64 = 1024 * MIB;

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Cuts.
    pub cuts: u32,
    /// Publications that were acknowledged before a cut, and were there after it.
    pub published: u32,
    /// Downloads that were said to be durable before a cut, and were there after it.
    pub fetched: u32,
}

struct Scene {
    world: World,
    disk: Mount,
    images: [PathBuf; 2],
    random: SmallRng,
    tracker: Tracker,
    publisher: Peer,
    fetcher: Peer,
    published: BTreeMap<String, String>,
    fetched: BTreeMap<String, (String, Option<PathBuf>)>,
    next: u64,
    tally: Tally,
}

enum Doing {
    Publish,
    Fetch(Option<PathBuf>),
}

/// Cuts the power so often. None where no file system can be mounted, which was said then.
///
/// # Panics
/// When something is not there that was acknowledged as durable, or something is claimed that is wrong.
pub fn run(test: &str, setup: Setup, cuts: u32, seed: u64, mut each: impl FnMut(Tally)) -> Option<Tally> {
    let world = World::new(setup);
    let images = [world.path("disk-0"), world.path("disk-1")];
    if !make_ext4(test, &images[0], DISK) {
        return None;
    }
    let disk = Mount::image(test, &images[0])?;
    let data = |kind: &str, name: &str| format!("{kind}.data_dir={:?}", disk.path().join(name));
    let tracker = world.tracker_with("tracker", &[&data("tracker", "tracker"), "tracker.lease=1s"]);
    let patience = "download.patience=10s";
    let publisher =
        world.running_peer_with("publisher", &[&tracker], &[&data("peer", "publisher"), patience]);
    let fetcher = world.running_peer_with("fetcher", &[&tracker], &[&data("peer", "fetcher"), patience]);
    let mut scene = Scene {
        random: SmallRng::seed_from_u64(seed),
        images,
        disk,
        tracker,
        publisher,
        fetcher,
        published: BTreeMap::new(),
        fetched: BTreeMap::new(),
        next: 0,
        tally: Tally::default(),
        world,
    };
    for cut in 0..cuts {
        scene.work();
        scene.cut(cut as usize);
        scene.check();
        each(scene.tally);
    }
    Some(scene.tally)
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.keep();
        }
    }
}

impl Scene {
    /// Publishes and fetches for a while; the last commands are cut off.
    fn work(&mut self) {
        let steps = self.random.random_range(1..5);
        let mut under_way = Vec::new();
        for step in 0..steps {
            under_way
                .extend((0..self.random.random_range(1..=3)).map(|_| self.publish()).collect::<Vec<_>>());
            under_way.extend(self.fetch());
            if step + 1 < steps {
                for (name, hash, doing, process) in std::mem::take(&mut under_way) {
                    process.wait(LONG).ok();
                    self.note(name, hash, doing);
                }
            }
        }
        sleep(Duration::from_millis(self.random.random_range(0..150)));
        for (name, hash, doing, mut process) in under_way {
            // What has ended has acknowledged; the others go with the power.
            if !process.is_running() {
                process.wait(LONG).ok();
                self.note(name, hash, doing);
            } else {
                process.kill();
            }
        }
    }

    fn note(&mut self, name: String, hash: String, doing: Doing) {
        match doing {
            Doing::Publish => {
                self.published.insert(name, hash);
            }
            Doing::Fetch(path) => {
                self.fetched.insert(name, (hash, path));
            }
        }
    }

    fn publish(&mut self) -> (String, String, Doing, Process) {
        let size = match self.random.random_range(0..10) {
            0..5 => self.random.random_range(1..64 * 1024),
            5..8 => self.random.random_range(256 * 1024..MIB),
            _ => self.random.random_range(MIB..8 * MIB),
        };
        let name = format!("file-{}", self.next);
        self.next += 1;
        let path = self.world.path(&name);
        let hash = write_file(&path, size, self.next);
        let process = self.publisher.spawn([OsStr::new("publish"), OsStr::new("--store"), path.as_os_str()]);
        (name, hash, Doing::Publish, process)
    }

    fn fetch(&mut self) -> Option<(String, String, Doing, Process)> {
        let wanted = self.published.iter().find(|(name, _)| !self.fetched.contains_key(*name));
        let (name, hash) = wanted.map(|(name, hash)| (name.clone(), hash.clone()))?;
        let path = self.random.random_bool(0.3).then(|| self.disk.path().join(format!("got-{name}")));
        let mut args = vec![OsStr::new("get"), OsStr::new("--sync"), OsStr::new(&name)];
        if let Some(path) = &path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        let process = self.fetcher.spawn(args);
        Some((name, hash, Doing::Fetch(path), process))
    }

    fn cut(&mut self, number: usize) {
        for signal in [Signal::STOP, Signal::KILL] {
            if signal == Signal::KILL {
                let [from, to] = [&self.images[number % 2], &self.images[(number + 1) % 2]];
                fs::copy(from, to).expect("there is room for a copy");
            }
            self.tracker.signal(signal);
            self.publisher.signal(signal);
            self.fetcher.signal(signal);
        }
        self.tracker.kill();
        self.publisher.kill();
        self.fetcher.kill();
        self.disk.replace(&self.images[(number + 1) % 2]);
        self.tally.cuts += 1;
    }

    fn check(&mut self) {
        self.tracker.start();
        self.publisher.start();
        self.fetcher.start();
        let listed: BTreeMap<String, String> = self
            .fetcher
            .list()
            .iter()
            .map(|file| {
                (file["name"].as_str().unwrap_or("").to_owned(), file["id"].as_str().unwrap_or("").to_owned())
            })
            .collect();
        for (name, hash) in &self.published {
            assert_eq!(listed.get(name), Some(hash), "{name} was acknowledged");
        }
        // Nothing is claimed that is not there.
        self.publisher.run(["verify"]).ok();
        self.fetcher.run(["verify"]).ok();
        let out = self.world.path("exported");
        let export = |peer: &Peer, name: &str, hash: &str| {
            peer.run([OsStr::new("export"), OsStr::new(name), OsStr::new("-o"), out.as_os_str()]).ok();
            assert_eq!(hash_of(&out), hash, "{name}");
            fs::remove_file(&out).expect("it was just made");
        };
        for (name, hash) in &self.published {
            export(&self.publisher, name, hash);
            self.tally.published += 1;
        }
        for (name, (hash, path)) in &self.fetched {
            match path {
                Some(path) => assert_eq!(&hash_of(path), hash, "{name}"),
                None => export(&self.fetcher, name, hash),
            }
            self.tally.fetched += 1;
        }
    }
}
