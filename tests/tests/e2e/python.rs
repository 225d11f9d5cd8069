//! The Python package in `clients/python`, written from `docs/PROTOCOL.md`, against a real tracker and a real peer.
//!
//! Requires Python 3 and, for the first run, PyPI. Without them the tests are skipped with a message; they fail if `CI=true`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use enjambre_tests::binary::profile_dir;
use enjambre_tests::content::{MIB, hash_of, is_executable, make_executable};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::setup::Wire;
use enjambre_tests::skip::print_skipped;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use parking_lot::Mutex;
use rustix::process::Signal;

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the repository")
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let stderr = || String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", stderr())) }
}

/// Returns a hash of the sources of the package.
fn version_of(package: &Path) -> String {
    let mut files: Vec<PathBuf> =
        fs::read_dir(package.join("src/enjambre")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(package.join("pyproject.toml"));
    files.retain(|path| path.is_file());
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        hasher.update(&fs::read(path).unwrap());
    }
    hasher.finalize().to_hex().to_string()
}

/// Returns the Python interpreter of a virtual environment with the package. The target directory keeps it, until the
/// version changes.
fn install(name: &str, version: &str, package: &str) -> Result<PathBuf, String> {
    static INSTALLATION: Mutex<()> = Mutex::new(());
    let _installing = INSTALLATION.lock();
    let folder = profile_dir().join(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("version");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == version) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--timeout", "15"])
        .arg(package))?;
    fs::write(stamp, version).map_err(|error| error.to_string())?;
    Ok(python)
}

/// As [`install`]. Reports a failure as skipped, unless `CI=true`.
pub(crate) fn installed(name: &str, version: &str, package: &str) -> Option<PathBuf> {
    match install(name, version, package) {
        Ok(python) => Some(python),
        Err(reason) if env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{reason}"),
        Err(reason) => {
            print_skipped(name, &format!("{package} cannot be installed: {reason}"));
            None
        }
    }
}

/// Returns the Python interpreter of a virtual environment with the client.
pub(crate) fn python() -> Option<PathBuf> {
    let package = repository().join("clients/python");
    installed("python-client", &version_of(&package), &format!("{}[test]", package.display()))
}

fn client(python: &Path, arguments: &[&str], path: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(repository().join("tests/python/client.py")).args(arguments).arg(path);
    command
}

#[test]
fn python_client_lists_finds_and_downloads() {
    let Some(python) = python() else { return };
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let (other, _) = world.file("other.bin", 1_000);
    let (file, hash) = world.file("film.bin", 3 * MIB + 17);
    make_executable(&file);
    a.publish(&other, &[]);
    a.publish(&file, &[]);
    let copies = world.path("copies");
    fs::create_dir(&copies).unwrap();
    let command = client(&python, &["get", tracker.endpoint(), "film.bin"], &copies);
    let output = Process::start_command(&world.path(""), command).wait(TIMEOUT).ok();
    assert!(output.stdout.contains("other.bin") && output.stdout.contains(&hash), "{}", output.stdout);
    for copy in ["tcp.bin", "zmq.bin"] {
        assert_eq!(hash_of(&copies.join(copy)), hash);
        assert!(is_executable(&copies.join(copy)));
    }
}

#[test]
fn python_peer_publishes_and_serves() {
    let Some(python) = python() else { return };
    for wire in [Wire::Tcp, Wire::Zmq] {
        let world = World::over(wire);
        let tracker = world.tracker("tracker");
        let a = world.running_peer("a", &[&tracker]);
        let (file, hash) = world.file("film.bin", 3 * MIB + 17);
        make_executable(&file);
        let command = client(&python, &["serve", tracker.endpoint()], &file);
        let mut peer = Process::start_command(&world.path(""), command);
        peer.wait_line(TIMEOUT, |line| (line == format!("published {hash}")).then_some(()));
        let copy = world.path("copy.bin");
        a.get_to("film.bin", &copy).ok();
        assert_eq!(hash_of(&copy), hash);
        assert!(is_executable(&copy));
    }
}

#[test]
fn peers_publish_again_what_a_restored_tracker_lacks() {
    let Some(python) = python() else { return };
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &["tracker.lease=3s"]);
    let a = world.running_peer("a", &[&tracker]);
    let (first, _) = world.file("first.bin", 1_000);
    a.publish(&first, &[]);
    tracker.stop(Signal::TERM, TIMEOUT).ok();
    let backup = world.path("backup");
    let copy = |from: &Path, to: &Path| run(Command::new("cp").arg("-a").args([from, to])).unwrap();
    copy(tracker.folder(), &backup);
    tracker.start();
    // The database of the backup contains the content, but not its other name.
    let other_name = world.path("other.bin");
    fs::copy(&first, &other_name).unwrap();
    a.publish(&other_name, &[]);
    let (film, hash) = world.file("film.bin", MIB);
    let mut peer =
        Process::start_command(&world.path(""), client(&python, &["serve", tracker.endpoint()], &film));
    peer.wait_line(TIMEOUT, |line| (line == format!("published {hash}")).then_some(()));
    tracker.kill();
    fs::remove_dir_all(tracker.folder()).unwrap();
    copy(&backup, tracker.folder());
    tracker.start();
    wait_for("all names", TIMEOUT, || {
        let list = a.run(["list"]).stdout;
        ["first.bin", "other.bin", "film.bin"].iter().all(|name| list.contains(name))
    });
}
