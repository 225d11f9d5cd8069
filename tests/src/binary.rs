//! Locates the programs under test in the target directory of the running test.
//!
//! `cargo test --workspace` builds them before it runs any test. A single test uses the programs of the last build.

use std::cell::RefCell;
use std::env;
use std::path::{Path, PathBuf};

/// The environment variable with the path of another `enjambre` to test, for example an installed one.
pub const OVERRIDE: &str = "ENJAMBRE_BINARY";

thread_local! {
    static SELECTED: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Calls `run` with another program of the workspace, or of any path, under test on this thread.
///
/// # Panics
/// Panics if the program does not exist.
pub fn with_program<T>(program: impl AsRef<Path>, run: impl FnOnce() -> T) -> T {
    let path = existing(profile_dir().join(program));
    let previous = SELECTED.replace(Some(path));
    let result = run();
    SELECTED.set(previous);
    result
}

/// Returns the path of the program under test: that of [`with_program`] or [`OVERRIDE`], `enjambre` by default.
///
/// # Panics
/// Panics if the program does not exist.
pub fn enjambre() -> PathBuf {
    if let Some(path) = SELECTED.with_borrow(Clone::clone) {
        return path;
    }
    existing(env::var_os(OVERRIDE).map_or_else(|| profile_dir().join("enjambre"), PathBuf::from))
}

/// Returns the path of an example of this package.
///
/// # Panics
/// Panics if the example does not exist.
pub fn example(name: &str) -> PathBuf {
    existing(profile_dir().join("examples").join(name))
}

/// Returns the directory `target/<profile>` of the running test.
///
/// # Panics
/// Panics if the test does not run from a target directory.
pub fn profile_dir() -> PathBuf {
    let exe = env::current_exe().expect("a running program has a path");
    let directory = exe.parent().expect("a program is in a directory");
    match directory.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => directory.parent().expect("deps is in a profile's directory").to_owned(),
        _ => directory.to_owned(),
    }
}

/// Returns the root directory of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.is_file(), "{} does not exist; run `cargo build --workspace --all-targets`", path.display());
    path
}
