//! Data folders of every format that there was are opened, and what was in them is there.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;
use std::time::Duration;

use enjambre_tests::fixture;
use enjambre_tests::node::{Peer, Setup, World};
use rustix::process::Signal;
use serde_json::Value;

/// What the product promises for SIGTERM.
const LEAVE: Duration = Duration::from_secs(5);
const LARGE: &str = "42e0b5713fbb6b06850b59873e171e0e32c8d990b7531fd1a50d5e42d79691bc";

fn world(backend: &'static str) -> World {
    World::new(Setup { backend, ..Setup::default() })
}

/// Names, sizes and whatever else is asked for, in the order in which they are told of.
fn lines(found: &[Value], keys: [&str; 3]) -> Vec<String> {
    found.iter().map(|line| keys.map(|key| line[key].to_string()).join(" ")).collect()
}

#[track_caller]
fn a_tracker_goes_on(backend: &'static str, name: &str, migrates: bool) {
    let world = world(backend);
    fixture::unpack(name, &world.path("old"));
    let settings = ["tracker.data_dir=\"../old\"", "tracker.store.enabled=true"];
    let mut tracker = world.tracker_with("tracker", &settings);
    for start in 1..=2 {
        let listed = tracker.run(["list", "--json"]).ok().json();
        let expected = [
            "\"folder\" 1 120",
            "\"kept.txt\" 1 20",
            "\"large again.bin\" 1 300000",
            "\"large.bin\" 1 300000",
            "\"small.txt\" 2 13",
            "\"small.txt\" 1 12",
        ];
        assert_eq!(lines(&listed, ["name", "version", "size"]), expected, "{name}, start {start}");
        let status = tracker.run(["status", "--json"]).ok().json();
        let store = &status.last().unwrap()["store"];
        assert_eq!((&store["pins"], &store["reserved"]), (&1.into(), &20.into()), "{name}: {store}");
        let said = tracker.stop(Signal::TERM, LEAVE).ok().stderr;
        let migrated = said.contains("was brought from format 1 to 2");
        assert_eq!(migrated, migrates && start == 1, "{name}, start {start}: {said}");
        tracker.start();
    }
    // Its own copy is whole, and it takes what is published now.
    let peer = world.running_peer("peer", &[&tracker]);
    let (path, _) = world.file("new.bin", 1000);
    peer.run(["publish", path.to_str().unwrap()]).ok();
    let output = world.path("kept.txt");
    peer.run(["get", "kept.txt", "-o", output.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(output).unwrap(), "the tracker keeps it");
}

#[test]
fn a_catalogue_of_format_1_in_sqlite_is_brought_forward() {
    a_tracker_goes_on("sqlite", "sqlite-tracker-1", true);
}

#[test]
fn a_catalogue_of_format_1_in_sled_is_brought_forward() {
    a_tracker_goes_on("sled", "sled-tracker-1", true);
}

#[test]
fn a_catalogue_of_format_2_is_opened() {
    a_tracker_goes_on("sqlite", "sqlite-tracker-2", false);
    a_tracker_goes_on("sled", "sled-tracker-2", false);
}

/// The peer of a fixture has these files, and every piece of them is right.
#[track_caller]
fn a_peer_goes_on(backend: &'static str, name: &str, expected: &[&str]) {
    let world = world(backend);
    fixture::unpack(name, &world.path("old"));
    let peer: Peer = world.peer_with("peer", &[], &["peer.data_dir=\"../old\""]);
    let mut found = lines(&peer.run(["library", "--json"]).ok().json(), ["name", "size", "have"]);
    found.sort_unstable();
    assert_eq!(found, expected, "{name}");
    let verified = peer.run(["verify"]).ok().stdout;
    assert!(verified.lines().all(|line| line.contains(": right, ")), "{name}: {verified}");
    let output = world.path("large.bin");
    peer.run(["export", LARGE, "-o", output.to_str().unwrap()]).ok();
    assert_eq!(blake3::hash(&fs::read(output).unwrap()).to_string(), LARGE, "{name}");
}

#[test]
fn a_library_of_format_1_in_sqlite_is_opened() {
    let files = ["\"kept.txt\" 20 1", "\"large again.bin\" 300000 2"];
    a_peer_goes_on("sqlite", "sqlite-peer", &files);
}

#[test]
fn content_that_sqlite_has_in_a_log_of_an_earlier_program_is_opened() {
    let files = ["\"kept.txt\" 20 1", "\"large again.bin\" 300000 2"];
    a_peer_goes_on("sqlite", "sqlite-peer-wal", &files);
}

#[test]
fn a_library_of_format_1_in_sled_is_opened() {
    let files = ["\"folder\" 16 3", "\"large.bin\" 300000 2", "\"small.txt\" 12 1", "\"small.txt\" 13 1"];
    a_peer_goes_on("sled", "sled-peer", &files);
}
