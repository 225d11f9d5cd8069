//! Power cuts: a tracker and two peers run on a file system in an image file, which is copied while they work. After a
//! restart from the copy, all data that was acknowledged as durable must be present.
//!
//! The processes are stopped with SIGSTOP during the copy, so they acknowledge nothing that the copy lacks. Most data
//! without `fsync` is not in the image, because the file system delays its write-back. After the copy the processes are
//! killed and the copy is mounted in place of the original.

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
use crate::mount::{Mount, copy_image, make_ext4};
use crate::node::{Peer, Tracker, World};
use crate::process::Process;
use crate::setup::Setup;
use crate::wait::TIMEOUT;

const DISK_SIZE: u64 = 1024 * MIB;

/// The numbers of checked operations.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Power cuts.
    pub cuts: u32,
    /// Publications that were acknowledged before a power cut and present after it.
    pub published: u32,
    /// Downloads that were acknowledged as durable before a power cut and present after it.
    pub fetched: u32,
}

struct PowerCutTest {
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

/// A command in progress.
struct Command {
    name: String,
    hash: String,
    action: Action,
    process: Process,
}

enum Action {
    Publish,
    Fetch(Option<PathBuf>),
}

/// Runs this number of power cuts. Calls `each` after every power cut. Returns `None`, and prints that `test` is skipped, if
/// no file system can be mounted.
///
/// # Panics
/// Panics if data that was acknowledged as durable is missing, or if `verify` finds an error.
pub fn run(test: &str, setup: Setup, cuts: u32, seed: u64, mut each: impl FnMut(Tally)) -> Option<Tally> {
    let world = World::new(setup);
    let images = [world.path("disk-0"), world.path("disk-1")];
    if !make_ext4(test, &images[0], DISK_SIZE) {
        return None;
    }
    let disk = Mount::image(test, &images[0])?;
    let data_dir = |kind: &str, name: &str| format!("{kind}.data_dir={:?}", disk.path().join(name));
    let tracker = world.tracker_with("tracker", &[&data_dir("tracker", "tracker"), "tracker.lease=1s"]);
    let provider_timeout = "download.provider_timeout=10s";
    let publisher = world.running_peer_with(
        "publisher",
        &[&tracker],
        &[&data_dir("peer", "publisher"), provider_timeout],
    );
    let fetcher =
        world.running_peer_with("fetcher", &[&tracker], &[&data_dir("peer", "fetcher"), provider_timeout]);
    let mut state = PowerCutTest {
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
        state.work();
        state.cut(cut as usize);
        state.check();
        each(state.tally);
    }
    Some(state.tally)
}

impl Drop for PowerCutTest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.keep();
        }
    }
}

impl PowerCutTest {
    /// Publishes and downloads for a while. The power cut interrupts the last commands.
    fn work(&mut self) {
        let steps = self.random.random_range(1..5);
        let mut running = Vec::new();
        for step in 0..steps {
            running.extend((0..self.random.random_range(1..=3)).map(|_| self.publish()).collect::<Vec<_>>());
            running.extend(self.fetch());
            if step + 1 < steps {
                for command in std::mem::take(&mut running) {
                    self.finish(command);
                }
            }
        }
        sleep(Duration::from_millis(self.random.random_range(0..150)));
        for mut command in running {
            // A command that has exited has acknowledged its work.
            if !command.process.is_running() {
                self.finish(command);
            } else {
                command.process.kill();
            }
        }
    }

    /// Waits for a command to succeed and records its result.
    fn finish(&mut self, command: Command) {
        let Command { name, hash, action, process } = command;
        process.wait(TIMEOUT).ok();
        match action {
            Action::Publish => {
                self.published.insert(name, hash);
            }
            Action::Fetch(path) => {
                self.fetched.insert(name, (hash, path));
            }
        }
    }

    fn publish(&mut self) -> Command {
        let size = match self.random.random_range(0..10) {
            0..5 => self.random.random_range(1..64 * 1024),
            5..8 => self.random.random_range(256 * 1024..MIB),
            _ => self.random.random_range(MIB..8 * MIB),
        };
        let name = format!("file-{}", self.next);
        self.next += 1;
        let path = self.world.path(&name);
        let hash = write_file(&path, size, self.next);
        let process = self.publisher.spawn([OsStr::new("publish"), OsStr::new("--copy"), path.as_os_str()]);
        Command { name, hash, action: Action::Publish, process }
    }

    fn fetch(&mut self) -> Option<Command> {
        let wanted = self.published.iter().find(|(name, _)| !self.fetched.contains_key(*name));
        let (name, hash) = wanted.map(|(name, hash)| (name.clone(), hash.clone()))?;
        let path = self.random.random_bool(0.3).then(|| self.disk.path().join(format!("got-{name}")));
        let mut args = vec![OsStr::new("get"), OsStr::new("--sync"), OsStr::new(&name)];
        if let Some(path) = &path {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        let process = self.fetcher.spawn(args);
        Some(Command { name, hash, action: Action::Fetch(path), process })
    }

    fn cut(&mut self, number: usize) {
        for signal in [Signal::STOP, Signal::KILL] {
            if signal == Signal::KILL {
                let [from, to] = [&self.images[number % 2], &self.images[(number + 1) % 2]];
                copy_image(from, to);
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
            assert_eq!(listed.get(name), Some(hash), "{name} was acknowledged and is not listed");
        }
        // The libraries claim no pieces that they lost.
        self.publisher.run(["verify"]).ok();
        self.fetcher.run(["verify"]).ok();
        let out = self.world.path("exported");
        let export = |peer: &Peer, name: &str, hash: &str| {
            peer.run([OsStr::new("export"), OsStr::new(name), OsStr::new("-o"), out.as_os_str()]).ok();
            assert_eq!(hash_of(&out), hash, "wrong content for {name}");
            fs::remove_file(&out).expect("cannot remove the output");
        };
        for (name, hash) in &self.published {
            export(&self.publisher, name, hash);
            self.tally.published += 1;
        }
        for (name, (hash, path)) in &self.fetched {
            match path {
                Some(path) => assert_eq!(&hash_of(path), hash, "wrong content for {name}"),
                None => export(&self.fetcher, name, hash),
            }
            self.tally.fetched += 1;
        }
    }
}
