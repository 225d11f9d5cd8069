//! Short runs of `--example torture` for every backend and content location.

use enjambre_tests::torture;

fn check(setup: &str) {
    let tally = torture::run(setup.parse().unwrap(), 10, 1, |_| {});
    assert!(tally.kills > 0 && tally.published >= 3 && tally.fetched >= 2, "{tally:?}");
}

#[test]
fn sqlite_survives_kills() {
    check("sqlite");
}

#[test]
fn sqlite_with_content_in_files_survives_kills() {
    check("sqlite+files");
}

#[test]
fn sled_survives_kills() {
    check("sled");
}

#[test]
fn sled_with_content_in_files_survives_kills() {
    check("sled+files");
}
