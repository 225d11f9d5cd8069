//! Fault injection in stored data: flipped bits, lost blocks and truncated files in databases and content.
//!
//! A node either refuses to start, with an error of one line, or starts. A running node never delivers content that does
//! not match its id, never panics and never hangs. It need not detect damage at startup: SQLite has no checksums, and a
//! flipped bit in a name is a different valid name. The seed determines the location and kind of the damage.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rustix::process::Signal;

use crate::content::{hash_of, write_file};
use crate::node::{Peer, Tracker, World};
use crate::process::Output;
use crate::setup::Setup;
use crate::wait::TIMEOUT;

/// The data to damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The database of a tracker.
    Catalogue,
    /// The library index of a peer.
    Library,
    /// The stored content of a peer, in a database or in files.
    Content,
}

impl Target {
    /// All targets.
    pub const ALL: [Self; 3] = [Self::Catalogue, Self::Library, Self::Content];

    /// Whether a file of the data directory belongs to this target.
    fn is_part(self, path: &Path) -> bool {
        let name = path.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let content = name.contains("-content") || name == "content";
        let database = name.starts_with("catalogue") || name.starts_with("library");
        let lock = path.extension() == Some(OsStr::new("lock"));
        !lock
            && match self {
                Self::Catalogue | Self::Library => database && !content,
                Self::Content => content,
            }
    }
}

/// The numbers of outcomes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Starts that failed with a valid error message.
    pub refused: u32,
    /// Starts that succeeded.
    pub started: u32,
    /// Files that were delivered, with correct content.
    pub delivered: u32,
    /// Files whose delivery failed with an error.
    pub undelivered: u32,
}

/// A stopped node, copies of its data, and a peer that queries it.
struct DamageTest {
    world: World,
    tracker: Tracker,
    provider: Peer,
    reader: Peer,
    target: Target,
    /// Copies of the data directory after a clean shutdown and after `kill -9`.
    originals: [PathBuf; 2],
    /// Hashes of the published files by name.
    files: BTreeMap<String, String>,
}

/// Runs one round per seed: damages a fresh copy of the data, starts the node and reads all files. Calls `each` with a
/// description of the damage.
///
/// # Panics
/// Panics if the program panics, hangs, prints an invalid error message or delivers a wrong byte.
pub fn run(
    setup: Setup,
    target: Target,
    seeds: impl IntoIterator<Item = u64>,
    mut each: impl FnMut(&str),
) -> Tally {
    let mut state = DamageTest::new(setup, target);
    let mut tally = Tally::default();
    for seed in seeds {
        let mut random = SmallRng::seed_from_u64(seed);
        let damage = state.damage(&mut random);
        each(&format!("seed {seed}: {damage}"));
        state.start_and_read(&format!("{target:?} of {setup:?}, seed {seed}: {damage}"), &mut tally);
    }
    tally
}

impl DamageTest {
    fn new(setup: Setup, target: Target) -> Self {
        let world = World::new(setup);
        let mut tracker = world.tracker_with("tracker", &["tracker.lease=1s"]);
        let mut provider = world.running_peer("provider", &[&tracker]);
        let reader = world.peer_with("reader", &[&tracker], &["download.provider_timeout=500ms"]);
        let mut files = BTreeMap::new();
        for (number, size) in [0, 1, 900, 40_000, 200_000, 262_144, 300_000, 900_000].into_iter().enumerate()
        {
            let name = format!("file-{number}");
            let path = world.path(&name);
            files.insert(name, write_file(&path, size, 1 + number as u64));
            provider.publish(&path, &["--copy"]);
        }
        let originals = [world.path("stopped"), world.path("killed")];
        for (number, original) in originals.iter().enumerate() {
            match (target, number) {
                (Target::Catalogue, 0) => drop(tracker.stop(Signal::TERM, TIMEOUT)),
                (Target::Catalogue, _) => tracker.kill(),
                (_, 0) => drop(provider.stop(Signal::TERM, TIMEOUT)),
                (_, _) => provider.kill(),
            }
            let data = match target {
                Target::Catalogue => tracker.folder().join("data"),
                _ => provider.folder().join("data"),
            };
            copy_directory(&data, original);
            if number == 0 {
                match target {
                    Target::Catalogue => tracker.start(),
                    _ => provider.start(),
                }
            }
        }
        Self { world, tracker, provider, reader, target, originals, files }
    }

    fn data(&self) -> PathBuf {
        match self.target {
            Target::Catalogue => self.tracker.folder().join("data"),
            _ => self.provider.folder().join("data"),
        }
    }

    /// Restores a copy of the data and damages one file of it. Returns a description of the damage.
    fn damage(&self, random: &mut SmallRng) -> String {
        let data = self.data();
        let _ = fs::remove_dir_all(&data);
        let original = self.originals.choose(random).expect("there are two originals");
        copy_directory(original, &data);
        let mut parts = Vec::new();
        list_files(&data, &data, &mut parts);
        parts.retain(|(path, length)| self.target.is_part(path) && *length > 0);
        parts.sort();
        let (path, length) = parts.choose(random).expect("the target has files").clone();
        let file =
            OpenOptions::new().read(true).write(true).open(data.join(&path)).expect("cannot open the file");
        let from = original.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let location = format!("{} of {length} bytes, {from}", path.display());
        match random.random_range(0..4) {
            0 => {
                let left = random.random_range(0..length);
                file.set_len(left).expect("cannot modify the file");
                format!("{location}: truncated to {left} bytes")
            }
            1 => {
                let start = random.random_range(0..length) / 4096 * 4096;
                let lost = vec![0; (length - start).min(4096) as usize];
                file.write_all_at(&lost, start).expect("cannot modify the file");
                format!("{location}: zeros at {start}")
            }
            2 => {
                let start = random.random_range(0..length) / 512 * 512;
                let mut noise = vec![0; (length - start).min(512) as usize];
                random.fill_bytes(&mut noise);
                file.write_all_at(&noise, start).expect("cannot modify the file");
                format!("{location}: random bytes at {start}")
            }
            _ => {
                let offsets: Vec<u64> =
                    (0..random.random_range(1..=16)).map(|_| random.random_range(0..length)).collect();
                for at in &offsets {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, *at).expect("cannot modify the file");
                    file.write_all_at(&[byte[0] ^ 1 << random.random_range(0..8)], *at)
                        .expect("cannot modify the file");
                }
                format!("{location}: bit flips at {offsets:?}")
            }
        }
    }

    /// Starts the node on the damaged data and reads everything from it.
    fn start_and_read(&mut self, context: &str, tally: &mut Tally) {
        let started = match self.target {
            Target::Catalogue => self.tracker.try_start(),
            _ => self.provider.try_start(),
        };
        if let Err(output) = started {
            check_failed_start(context, &output);
            tally.refused += 1;
            return;
        }
        tally.started += 1;
        match self.target {
            Target::Catalogue => self.query_tracker(context),
            _ => self.read_provider(context, tally),
        }
        let (log, end) = match self.target {
            Target::Catalogue => (self.tracker.stderr_text(), self.tracker.stop(Signal::TERM, TIMEOUT)),
            _ => (self.provider.stderr_text(), self.provider.stop(Signal::TERM, TIMEOUT)),
        };
        assert!(end.status.is_some_and(|status| status <= 1), "{context}: {end:?}");
        check_no_panic(context, &log);
        check_no_panic(context, &end.stderr);
    }

    fn query_tracker(&self, context: &str) {
        for args in [&["list", "--json"][..], &["status", "--json"], &["get", "file-2"]] {
            check_no_panic(context, &self.reader.run(args).stderr);
        }
        // A publication succeeds or fails with an error.
        let path = self.world.path("file-3");
        let published = self.reader.run([OsStr::new("publish"), path.as_os_str()]);
        check_no_panic(context, &published.stderr);
        for name in self.files.keys() {
            let _ = self.reader.run(["remove", name]);
        }
    }

    fn read_provider(&self, context: &str, tally: &mut Tally) {
        let out = self.world.path("out");
        let library = self.provider.run(["library", "--json"]);
        check_no_panic(context, &library.stderr);
        for (number, (name, hash)) in self.files.iter().enumerate() {
            let mut delivered = vec![];
            let args = [OsStr::new("export"), OsStr::new(name), OsStr::new("-o"), out.as_os_str()];
            // Download every second file before exporting it: the provider verifies pieces when it reads them.
            if number % 2 == 0 {
                let args = [OsStr::new("get"), OsStr::new(hash), OsStr::new("-o"), out.as_os_str()];
                delivered.push(self.reader.run(args));
                check_content(context, name, hash, &out, &delivered[0], tally);
                let _ = self.reader.run(["remove", hash]);
            }
            let output = self.provider.run(args);
            check_content(context, name, hash, &out, &output, tally);
        }
        let verified = self.provider.run(["verify"]);
        assert!(matches!(verified.status, Some(0 | 1)), "{context}: {verified:?}");
        check_no_panic(context, &verified.stderr);
        // `verify` marks damaged pieces as missing, so the second run finds none.
        if self.target == Target::Content && verified.stderr.contains("damaged files: ") {
            self.provider.run(["verify"]).ok();
        }
    }
}

fn check_content(context: &str, name: &str, hash: &str, out: &Path, output: &Output, tally: &mut Tally) {
    check_no_panic(context, &output.stderr);
    if output.status == Some(0) {
        assert_eq!(hash_of(out), hash, "{context}: wrong content for {name}");
        fs::remove_file(out).expect("cannot remove the output");
        tally.delivered += 1;
    } else {
        assert!(matches!(output.status, Some(1 | 3 | 4)), "{context}: {output:?}");
        assert!(!out.exists(), "{context}: failed delivery of {name} left an output file: {output:?}");
        tally.undelivered += 1;
    }
}

/// Checks the exit status and the error message of a failed start.
fn check_failed_start(context: &str, output: &Output) {
    assert_eq!(output.status, Some(1), "{context}: {output:?}");
    check_no_panic(context, &output.stderr);
    let last = output.stderr.lines().last().unwrap_or_default();
    assert!(!last.is_empty(), "{context}: no error message: {output:?}");
}

/// Checks that a text contains no traces of a panic or an abort.
fn check_no_panic(context: &str, text: &str) {
    for word in ["panicked", "RUST_BACKTRACE", "unwrap()", "memory allocation of"] {
        assert!(!text.contains(word), "{context}:\n{text}");
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("cannot create a directory");
    for entry in fs::read_dir(from).expect("cannot read a directory") {
        let entry = entry.expect("cannot read a directory entry");
        let kind = entry.file_type().expect("cannot read file metadata");
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_directory(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).expect("cannot copy a file");
        }
    }
}

fn list_files(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).expect("cannot read a directory") {
        let entry = entry.expect("cannot read a directory entry");
        let metadata = entry.metadata().expect("cannot read file metadata");
        if metadata.is_dir() {
            list_files(root, &entry.path(), files);
        } else if metadata.is_file() {
            let path = entry.path().strip_prefix(root).expect("the path is below the root").to_owned();
            files.push((path, metadata.len()));
        }
    }
}
