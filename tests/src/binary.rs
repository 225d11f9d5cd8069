//! Finds the binary that belongs to the running test: `enjambre`, or one with other plug-ins.
//!
//! Cargo tells an integration test only of the binaries of its own package, and `cargo test` may leave an old one
//! in place. So cargo is asked once per test process to bring it up to date, in the same profile and folder.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The environment variable that names another binary to be tested, for example an installed one.
pub const OVERRIDE: &str = "ENJAMBRE_BINARY";

static PATH: OnceLock<PathBuf> = OnceLock::new();

/// Lets the tests of this process be of another binary, built if need be. To be called before everything else.
///
/// # Panics
/// If it cannot be built, or another one was used already.
pub fn test_instead(package: &str, name: &str) {
    let path = PATH.get_or_init(|| build(package, "--bin", name));
    assert!(path.ends_with(name), "{} was used before {name}", path.display());
}

/// The path of the binary, built if need be.
///
/// # Panics
/// If it cannot be built.
pub fn enjambre() -> &'static Path {
    PATH.get_or_init(|| {
        env::var_os(OVERRIDE).map_or_else(|| build("enjambre", "--bin", "enjambre"), PathBuf::from)
    })
}

/// The path of an example of this package, built if need be.
///
/// # Panics
/// If it cannot be built.
pub fn example(name: &str) -> PathBuf {
    build("enjambre-tests", "--example", name)
}

/// The folder `target/<profile>` that the running test is in.
///
/// # Panics
/// If the test does not run out of a target folder.
pub fn profile_dir() -> PathBuf {
    let exe = env::current_exe().expect("a running program has a path");
    let folder = exe.parent().expect("a program is in a folder");
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => {
            folder.parent().expect("deps is inside of a profile's folder").to_owned()
        }
        _ => folder.to_owned(),
    }
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn build(package: &str, kind: &str, name: &str) -> PathBuf {
    let profile_dir = profile_dir();
    let target = profile_dir.parent().expect("a profile's folder is inside of the target folder");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "--package", package, kind, name, "--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let folder = if kind == "--example" { profile_dir.join("examples") } else { profile_dir };
    folder.join(name)
}
