//! A client in another language, written from `docs/PROTOCOL.md`, lists, finds, downloads and verifies a file.
//!
//! Requires Python 3 and, for the first run, PyPI. Without them the test is skipped with a message; it fails if `CI=true`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use enjambre_tests::binary::profile_dir;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::wait::TIMEOUT;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let stderr = || String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", stderr())) }
}

/// Returns the Python interpreter of a virtual environment with the requirements of the client. The target directory keeps it.
fn python() -> Result<PathBuf, String> {
    let folder = profile_dir().join("python-client");
    let python = folder.join("bin/python");
    let ready = |python: &Path| run(Command::new(python).args(["-c", "import zmq, cbor2, blake3"]));
    if ready(&python).is_err() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--timeout", "15", "-r"])
            .arg(sources().join("requirements.txt")))?;
        ready(&python)?;
    }
    Ok(python)
}

#[test]
fn python_client_lists_finds_and_downloads() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) if env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{reason}"),
        Err(reason) => {
            eprintln!("SKIPPED: the Python client cannot be installed: {reason}");
            return;
        }
    };
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let (other, _) = world.file("other.bin", 1_000);
    let (file, hash) = world.file("film.bin", 3 * MIB + 17);
    a.publish(&other, &[]);
    a.publish(&file, &[]);
    for socket in ["dealer", "req"] {
        let path = world.path(format!("{socket}.bin"));
        let mut command = Command::new(&python);
        command
            .arg(sources().join("client.py"))
            .args(["--socket", socket, tracker.endpoint(), "film.bin"])
            .arg(&path);
        let output = Process::start_command(&world.path(""), command).wait(TIMEOUT).ok();
        assert_eq!(hash_of(&path), hash);
        assert!(output.stdout.contains("other.bin") && output.stdout.contains(&hash), "{}", output.stdout);
    }
}
