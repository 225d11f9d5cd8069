//! Tests whose requirements are missing.

use std::io::Write;
use std::path::PathBuf;

/// Prints that a test is skipped, although the test harness hides the output of tests that pass.
pub fn print_skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr().lock(), "\n***** {test} SKIPPED: {reason} *****");
}

/// Returns the path of an installed program. Returns `None`, and prints that `test` is skipped, if there is none.
pub fn installed(test: &str, program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    if found.is_none() {
        print_skipped(test, &format!("{program} is not installed"));
    }
    found
}
