//! Encrypted swarms with real processes: everybody is known by a key, and nobody talks to another one.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Wire, World};
use enjambre_tests::wait::LONG;

#[test]
fn a_swarm_over_tls_survives_the_death_of_a_source_and_the_restart_of_everybody() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker("tracker");
    assert!(tracker.endpoint().starts_with("zmqs://") && tracker.endpoint().contains('@'));
    let (file, hash) = world.file("film.bin", 24 * MIB + 5);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let mut b = world.running_peer("b", &[&tracker]);
    b.run(["get", "film.bin"]).ok();
    b.wait_providers("film.bin", 2, LONG);

    let mut c = world.peer("c", &[&tracker]);
    c.set("limits.download=\"16MB/s\"");
    let path = world.path("got.bin");
    let mut get = c.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    get.wait_event(|event| (event["done"].as_u64()? > 4 * MIB).then_some(()));
    a.kill();
    get.wait(LONG).ok();
    assert_eq!(hash_of(&path), hash);

    // The key of a node stays, so it is found where it was.
    tracker.kill();
    b.kill();
    tracker.start();
    b.start();
    let d = world.peer("d", &[&tracker]);
    let path = world.path("again.bin");
    d.get_to("film.bin", &path);
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn a_tracker_with_another_key_is_not_talked_to_and_the_error_says_so() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker("tracker");
    let peer = world.peer("peer", &[&tracker]);
    peer.run(["list"]).ok();
    let (scheme, rest) = tracker.endpoint().split_once("://").unwrap();
    let (id, place) = rest.split_once('@').unwrap();
    let another = "ab".repeat(32);
    let trackers = format!("peer.trackers=[\"{scheme}://{another}@{place}\"]");
    let output = peer.run(["list", "--set", &trackers]).expect_status(4);
    assert!(output.stderr.contains(id) && output.stderr.contains(&another), "{}", output.stderr);

    let trackers = format!("peer.trackers=[\"{scheme}://{place}\"]");
    let output = peer.run(["list", "--set", &trackers]).expect_status(2);
    assert!(output.stderr.contains("ID@HOST:PORT"), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
}

#[test]
fn encrypted_endpoints_may_be_open_to_others_without_being_asked_for() {
    let world = World::over(Wire::Secure);
    let peer = world.peer("peer", &[]);
    for (listen, status) in [("tcps://0.0.0.0:7711", 0), ("tcp://0.0.0.0:7711", 2)] {
        let listen = format!("transport.listen=[\"{listen}\"]");
        let output = peer.run(["config", "check", "--set", &listen]).expect_status(status);
        assert!(status == 0 || output.stderr.contains("tcps:// or zmqs://"), "{}", output.stderr);
    }
}
