//! The short form of `--example damage`: some seeds for each backend and each kind of database.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use enjambre_tests::damage::{Target, run};

fn is_borne(setup: &str, target: Target) {
    let tally = run(setup.parse().unwrap(), target, 0..6, |_| {});
    assert_eq!(tally.refused + tally.started, 6, "{tally:?}");
}

#[test]
fn a_damaged_catalogue_in_sqlite() {
    is_borne("sqlite", Target::Catalogue);
}

#[test]
fn a_damaged_library_in_sqlite() {
    is_borne("sqlite", Target::Library);
}

#[test]
fn damaged_content_in_sqlite() {
    is_borne("sqlite", Target::Content);
}

#[test]
fn damaged_content_in_files() {
    is_borne("sqlite+files", Target::Content);
}

#[test]
fn a_damaged_catalogue_in_sled() {
    is_borne("sled", Target::Catalogue);
}

#[test]
fn a_damaged_library_in_sled() {
    is_borne("sled", Target::Library);
}

#[test]
fn damaged_content_in_sled() {
    is_borne("sled", Target::Content);
}
