//! The short form of `--example power_cut`. It takes root, and is left out loudly where nothing can be mounted.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use enjambre_tests::power_cut;

fn survives(setup: &str) {
    let test = format!("a power cut with {setup}");
    let Some(tally) = power_cut::run(&test, setup.parse().unwrap(), 2, 7, |_| {}) else { return };
    assert!(tally.published > 0, "{tally:?}");
}

#[test]
fn nothing_durable_is_lost_with_sqlite() {
    survives("sqlite");
}

#[test]
fn nothing_durable_is_lost_with_sqlite_and_files() {
    survives("sqlite+files");
}

#[test]
fn nothing_durable_is_lost_with_sled() {
    survives("sled");
}

#[test]
fn nothing_durable_is_lost_with_sled_and_files() {
    survives("sled+files");
}
