//! Databases and content with flipped bytes, lost blocks and missing tails: each start gives a clear error or works, and
//! what it then delivers is right.
//!
//! Where the damage lies is decided by the seed. Nothing says that damage must be noticed at the start: SQLite has no
//! checksums, and a flipped byte in a name is another name. But no content leaves that is not what its id says, nothing
//! panics or hangs, and what is refused is refused with one line.

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
use crate::node::{Peer, Setup, Tracker, World};
use crate::process::Output;
use crate::wait::LONG;

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The database of a tracker.
    Catalogue,
    /// The index of a peer.
    Library,
    /// The content that a peer keeps, in a database or in files.
    Content,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Catalogue, Self::Library, Self::Content];

    /// Whether a file below the data folder belongs to it.
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

/// What came of the damage.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Starts that were refused with a clear error.
    pub refused: u32,
    /// Starts that worked.
    pub started: u32,
    /// Files that were delivered, all of them right.
    pub right: u32,
    /// Files that were refused.
    pub withheld: u32,
}

/// A node that was stopped, and what it had.
struct Scene {
    world: World,
    tracker: Tracker,
    keeper: Peer,
    asker: Peer,
    target: Target,
    /// Where a copy of the folder is that is damaged next: as it is after a stop, and after a kill.
    originals: [PathBuf; 2],
    files: BTreeMap<String, String>,
}

/// Damages what these seeds say, one after the other; `each` is told of every one.
///
/// # Panics
/// On a panic of the program, a hang, an unclear error, or a wrong byte.
pub fn run(
    setup: Setup,
    target: Target,
    seeds: impl IntoIterator<Item = u64>,
    mut each: impl FnMut(&str),
) -> Tally {
    let mut scene = Scene::new(setup, target);
    let mut tally = Tally::default();
    for seed in seeds {
        let mut random = SmallRng::seed_from_u64(seed);
        let what = scene.damage(&mut random);
        each(&format!("seed {seed}: {what}"));
        scene.look(&format!("{target:?} of {setup:?}, seed {seed}: {what}"), &mut tally);
    }
    tally
}

impl Scene {
    fn new(setup: Setup, target: Target) -> Self {
        let world = World::new(setup);
        let mut tracker = world.tracker_with("tracker", &["tracker.lease=1s"]);
        let mut keeper = world.running_peer("keeper", &[&tracker]);
        let asker = world.peer_with("asker", &[&tracker], &["download.patience=500ms"]);
        let mut files = BTreeMap::new();
        for (number, size) in [0, 1, 900, 40_000, 200_000, 262_144, 300_000, 900_000].into_iter().enumerate()
        {
            let name = format!("file-{number}");
            let path = world.path(&name);
            files.insert(name, write_file(&path, size, 1 + number as u64));
            keeper.publish(&path, &["--store"]);
        }
        let originals = [world.path("stopped"), world.path("killed")];
        for (number, original) in originals.iter().enumerate() {
            match (target, number) {
                (Target::Catalogue, 0) => drop(tracker.stop(Signal::TERM, LONG)),
                (Target::Catalogue, _) => tracker.kill(),
                (_, 0) => drop(keeper.stop(Signal::TERM, LONG)),
                (_, _) => keeper.kill(),
            }
            let data = match target {
                Target::Catalogue => tracker.folder().join("data"),
                _ => keeper.folder().join("data"),
            };
            copy_folder(&data, original);
            if number == 0 {
                match target {
                    Target::Catalogue => tracker.start(),
                    _ => keeper.start(),
                }
            }
        }
        Self { world, tracker, keeper, asker, target, originals, files }
    }

    fn data(&self) -> PathBuf {
        match self.target {
            Target::Catalogue => self.tracker.folder().join("data"),
            _ => self.keeper.folder().join("data"),
        }
    }

    /// Takes a fresh copy and damages it; says how.
    fn damage(&self, random: &mut SmallRng) -> String {
        let data = self.data();
        let _ = fs::remove_dir_all(&data);
        let original = self.originals.choose(random).expect("there are two");
        copy_folder(original, &data);
        let mut parts = Vec::new();
        list_files(&data, &data, &mut parts);
        parts.retain(|(path, length)| self.target.is_part(path) && *length > 0);
        parts.sort();
        let (path, length) = parts.choose(random).expect("there is something to damage").clone();
        let file = OpenOptions::new().read(true).write(true).open(data.join(&path)).expect("own file");
        let from = original.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let place = format!("{} of {length} bytes, {from}", path.display());
        match random.random_range(0..4) {
            0 => {
                let left = random.random_range(0..length);
                file.set_len(left).expect("own file");
                format!("{place}: only {left} bytes are left")
            }
            1 => {
                let start = random.random_range(0..length) / 4096 * 4096;
                let lost = vec![0; (length - start).min(4096) as usize];
                file.write_all_at(&lost, start).expect("own file");
                format!("{place}: zeros at {start}")
            }
            2 => {
                let start = random.random_range(0..length) / 512 * 512;
                let mut noise = vec![0; (length - start).min(512) as usize];
                random.fill_bytes(&mut noise);
                file.write_all_at(&noise, start).expect("own file");
                format!("{place}: noise at {start}")
            }
            _ => {
                let places: Vec<u64> =
                    (0..random.random_range(1..=16)).map(|_| random.random_range(0..length)).collect();
                for at in &places {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, *at).expect("own file");
                    file.write_all_at(&[byte[0] ^ 1 << random.random_range(0..8)], *at).expect("own file");
                }
                format!("{place}: flips at {places:?}")
            }
        }
    }

    /// Starts the node on what is there now, and asks it for everything.
    fn look(&mut self, context: &str, tally: &mut Tally) {
        let started = match self.target {
            Target::Catalogue => self.tracker.try_start(),
            _ => self.keeper.try_start(),
        };
        if let Err(output) = started {
            check_refusal(context, &output);
            tally.refused += 1;
            return;
        }
        tally.started += 1;
        match self.target {
            Target::Catalogue => self.ask_the_tracker(context),
            _ => self.ask_the_keeper(context, tally),
        }
        let (said, end) = match self.target {
            Target::Catalogue => (self.tracker.stderr_text(), self.tracker.stop(Signal::TERM, LONG)),
            _ => (self.keeper.stderr_text(), self.keeper.stop(Signal::TERM, LONG)),
        };
        assert!(end.status.is_some_and(|status| status <= 1), "{context}: {end:?}");
        check_words(context, &said);
        check_words(context, &end.stderr);
    }

    fn ask_the_tracker(&self, context: &str) {
        for args in [&["list", "--json"][..], &["status", "--json"], &["get", "file-2"]] {
            check_words(context, &self.asker.run(args).stderr);
        }
        // It takes what is published, or says why not.
        let path = self.world.path("file-3");
        let published = self.asker.run([OsStr::new("publish"), path.as_os_str()]);
        check_words(context, &published.stderr);
        for name in self.files.keys() {
            let _ = self.asker.run(["remove", name]);
        }
    }

    fn ask_the_keeper(&self, context: &str, tally: &mut Tally) {
        let out = self.world.path("out");
        let library = self.keeper.run(["library", "--json"]);
        check_words(context, &library.stderr);
        for (number, (name, hash)) in self.files.iter().enumerate() {
            let mut delivered = vec![];
            let args = [OsStr::new("export"), OsStr::new(name), OsStr::new("-o"), out.as_os_str()];
            // Half of them to another peer first: what is served is looked at when it is served.
            if number % 2 == 0 {
                let args = [OsStr::new("get"), OsStr::new(hash), OsStr::new("-o"), out.as_os_str()];
                delivered.push(self.asker.run(args));
                check_content(context, name, hash, &out, &delivered[0], tally);
                let _ = self.asker.run(["remove", hash]);
            }
            let output = self.keeper.run(args);
            check_content(context, name, hash, &out, &output, tally);
        }
        let verified = self.keeper.run(["verify"]);
        assert!(matches!(verified.status, Some(0 | 1)), "{context}: {verified:?}");
        check_words(context, &verified.stderr);
        // What was wrong is no longer claimed, so the second time nothing is.
        if self.target == Target::Content && verified.stderr.contains("are not what they were") {
            self.keeper.run(["verify"]).ok();
        }
    }
}

fn check_content(context: &str, name: &str, hash: &str, out: &Path, output: &Output, tally: &mut Tally) {
    check_words(context, &output.stderr);
    if output.status == Some(0) {
        assert_eq!(hash_of(out), hash, "{context}: {name} was delivered as another file");
        fs::remove_file(out).expect("it was just made");
        tally.right += 1;
    } else {
        assert!(matches!(output.status, Some(1 | 3 | 4)), "{context}: {output:?}");
        assert!(!out.exists(), "{context}: {name} failed and left something: {output:?}");
        tally.withheld += 1;
    }
}

/// One clear line, and an exit status.
fn check_refusal(context: &str, output: &Output) {
    assert_eq!(output.status, Some(1), "{context}: {output:?}");
    check_words(context, &output.stderr);
    let last = output.stderr.lines().last().unwrap_or_default();
    assert!(!last.is_empty(), "{context}: it says nothing: {output:?}");
}

/// Nobody is shown how the program is made.
fn check_words(context: &str, text: &str) {
    for word in ["panicked", "RUST_BACKTRACE", "unwrap()", "memory allocation of"] {
        assert!(!text.contains(word), "{context}:\n{text}");
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder can be made");
    for entry in fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("it can be read");
        let kind = entry.file_type().expect("it is there");
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_folder(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).expect("it can be copied");
        }
    }
}

fn list_files(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).expect("it is there") {
        let entry = entry.expect("it can be read");
        let metadata = entry.metadata().expect("it is there");
        if metadata.is_dir() {
            list_files(root, &entry.path(), files);
        } else if metadata.is_file() {
            let path = entry.path().strip_prefix(root).expect("it is below").to_owned();
            files.push((path, metadata.len()));
        }
    }
}
