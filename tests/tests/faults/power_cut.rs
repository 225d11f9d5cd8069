//! Short runs of `--example power_cut`. They require root and are skipped with a message if no file system can be mounted.

use enjambre_tests::power_cut;

fn check(setup: &str) {
    let test = format!("a power cut with {setup}");
    let Some(tally) = power_cut::run(&test, setup.parse().unwrap(), 2, 7, |_| {}) else { return };
    assert!(tally.published > 0, "{tally:?}");
}

#[test]
fn sqlite_survives_power_cuts() {
    check("sqlite");
}

#[test]
fn sqlite_with_content_in_files_survives_power_cuts() {
    check("sqlite+files");
}

#[test]
fn sled_survives_power_cuts() {
    check("sled");
}

#[test]
fn sled_with_content_in_files_survives_power_cuts() {
    check("sled+files");
}
