//! Data directories of released formats open with all their content; see `tests/fixtures/README.md`.

use std::fs;
use std::time::Duration;

use enjambre_tests::fixture;
use enjambre_tests::node::{Peer, World};
use enjambre_tests::setup::Setup;
use rustix::process::Signal;
use serde_json::Value;

/// The guaranteed time for a shutdown after SIGTERM.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
const LARGE: &str = "42e0b5713fbb6b06850b59873e171e0e32c8d990b7531fd1a50d5e42d79691bc";

fn world(backend: &'static str) -> World {
    World::new(Setup { backend, ..Setup::default() })
}

/// Formats three fields of each record.
fn lines(records: &[Value], keys: [&str; 3]) -> Vec<String> {
    records.iter().map(|record| keys.map(|key| record[key].to_string()).join(" ")).collect()
}

#[track_caller]
fn check_tracker(backend: &'static str) {
    let world = world(backend);
    fixture::unpack(&format!("{backend}-tracker"), &world.path("old"));
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
        assert_eq!(lines(&listed, ["name", "version", "size"]), expected, "{backend}, start {start}");
        let status = tracker.run(["status", "--json"]).ok().json();
        let store = &status.last().unwrap()["store"];
        assert_eq!((&store["pins"], &store["reserved"]), (&1.into(), &20.into()), "{backend}: {store}");
        tracker.stop(Signal::TERM, SHUTDOWN_TIMEOUT).ok();
        tracker.start();
    }
    // The catalogue accepts new publications, and the replica is complete.
    let peer = world.running_peer("peer", &[&tracker]);
    let (path, _) = world.file("new.bin", 1000);
    peer.run(["publish", path.to_str().unwrap()]).ok();
    let output = world.path("kept.txt");
    peer.run(["get", "kept.txt", "-o", output.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(output).unwrap(), "the tracker keeps it");
}

#[test]
fn tracker_of_format_1_opens() {
    check_tracker("sqlite");
    check_tracker("sled");
}

/// Checks that the library of a peer contains exactly these files, with only valid pieces.
#[track_caller]
fn check_peer(backend: &'static str, expected: &[&str]) {
    let world = world(backend);
    fixture::unpack(&format!("{backend}-peer"), &world.path("old"));
    let peer: Peer = world.peer_with("peer", &[], &["peer.data_dir=\"../old\""]);
    let mut found = lines(&peer.run(["library", "--json"]).ok().json(), ["name", "size", "available_pieces"]);
    found.sort_unstable();
    assert_eq!(found, expected, "{backend}");
    let verified = peer.run(["verify"]).ok().stdout;
    assert!(verified.lines().all(|line| line.contains(": valid, ")), "{backend}: {verified}");
    let output = world.path("large.bin");
    peer.run(["export", LARGE, "-o", output.to_str().unwrap()]).ok();
    assert_eq!(blake3::hash(&fs::read(output).unwrap()).to_string(), LARGE, "{backend}");
}

#[test]
fn peer_of_format_1_opens_with_sqlite() {
    check_peer("sqlite", &["\"kept.txt\" 20 1", "\"large again.bin\" 300000 2"]);
}

#[test]
fn peer_of_format_1_opens_with_sled() {
    let files = ["\"folder\" 16 3", "\"large.bin\" 300000 2", "\"small.txt\" 12 1", "\"small.txt\" 13 1"];
    check_peer("sled", &files);
}
