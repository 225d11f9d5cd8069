//! Short runs of `--example damage` for every backend and database.

use enjambre_tests::damage::{Target, run};

fn check(setup: &str, target: Target) {
    let tally = run(setup.parse().unwrap(), target, 0..6, |_| {});
    assert_eq!(tally.refused + tally.started, 6, "{tally:?}");
}

#[test]
fn damaged_sqlite_catalogue_is_handled() {
    check("sqlite", Target::Catalogue);
}

#[test]
fn damaged_sqlite_library_is_handled() {
    check("sqlite", Target::Library);
}

#[test]
fn damaged_sqlite_content_is_handled() {
    check("sqlite", Target::Content);
}

#[test]
fn damaged_content_files_are_handled() {
    check("sqlite+files", Target::Content);
}

#[test]
fn damaged_sled_catalogue_is_handled() {
    check("sled", Target::Catalogue);
}

#[test]
fn damaged_sled_library_is_handled() {
    check("sled", Target::Library);
}

#[test]
fn damaged_sled_content_is_handled() {
    check("sled", Target::Content);
}
