//! The short form of `--example torture`: some kills for each backend and each place of content.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use enjambre_tests::torture;

fn survives(setup: &str) {
    let tally = torture::run(setup.parse().unwrap(), 10, 1, |_| {});
    assert!(tally.kills > 0 && tally.published >= 3 && tally.fetched >= 2, "{tally:?}");
}

#[test]
fn nothing_is_lost_by_kills_of_sqlite_with_content_in_it() {
    survives("sqlite");
}

#[test]
fn nothing_is_lost_by_kills_of_sqlite_with_content_in_files() {
    survives("sqlite+files");
}

#[test]
fn nothing_is_lost_by_kills_of_sled_with_content_in_it() {
    survives("sled");
}

#[test]
fn nothing_is_lost_by_kills_of_sled_with_content_in_files() {
    survives("sled+files");
}
