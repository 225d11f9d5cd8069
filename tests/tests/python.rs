//! A client in another language, written from `docs/PROTOCOL.md`: lists, finds, downloads and verifies.
//!
//! It needs Python 3 and, the first time, PyPI. Where they are missing the test says so and is left out, unless
//! `CI=true`: there it fails.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use enjambre_tests::binary::profile_dir;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::wait::LONG;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = || String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", said())) }
}

/// The Python of a virtual environment with the client's requirements, made once per target folder.
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
fn a_client_in_python_lists_finds_downloads_and_verifies() {
    let python = match python() {
        Ok(python) => python,
        Err(why) if env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{why}"),
        Err(why) => {
            eprintln!("LEFT OUT: the client in Python was not run, because it cannot be set up here.\n{why}");
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
        let output = Process::start_command(&world.path(""), command).wait(LONG).ok();
        assert_eq!(hash_of(&path), hash);
        assert!(output.stdout.contains("other.bin") && output.stdout.contains(&hash), "{}", output.stdout);
    }
}
