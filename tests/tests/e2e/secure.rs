//! Encrypted swarms: nodes authenticate each other by their keys.

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::TIMEOUT;

#[test]
fn tls_swarm_survives_provider_death_and_restarts() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker("tracker");
    assert!(tracker.endpoint().starts_with("zmqs://") && tracker.endpoint().contains('@'));
    let (file, hash) = world.file("film.bin", 24 * MIB + 5);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let mut b = world.running_peer("b", &[&tracker]);
    b.run(["get", "film.bin"]).ok();
    b.wait_providers("film.bin", 2, TIMEOUT);

    let mut c = world.peer("c", &[&tracker]);
    c.set("limits.download=\"16MB/s\"");
    let path = world.path("got.bin");
    let mut get = c.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    get.wait_event(|event| (event["done"].as_u64()? > 4 * MIB).then_some(()));
    a.kill();
    get.wait(TIMEOUT).ok();
    assert_eq!(hash_of(&path), hash);

    // A node keeps its key when it restarts, so its endpoint stays valid.
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
fn tracker_with_wrong_key_is_rejected() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker("tracker");
    let peer = world.peer("peer", &[&tracker]);
    peer.run(["list"]).ok();
    let (scheme, rest) = tracker.endpoint().split_once("://").unwrap();
    let (id, address) = rest.split_once('@').unwrap();
    let other_id = "ab".repeat(32);
    let trackers = format!("peer.trackers=[\"{scheme}://{other_id}@{address}\"]");
    let output = peer.run(["list", "--set", &trackers]).expect_status(4);
    assert!(output.stderr.contains(id) && output.stderr.contains(&other_id), "{}", output.stderr);

    let trackers = format!("peer.trackers=[\"{scheme}://{address}\"]");
    let output = peer.run(["list", "--set", &trackers]).expect_status(2);
    assert!(output.stderr.contains("ID@HOST:PORT"), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
}

#[test]
fn encrypted_endpoints_need_no_opt_in() {
    let world = World::over(Wire::Secure);
    let peer = world.peer("peer", &[]);
    for (listen, status) in [("tcps://0.0.0.0:7711", 0), ("tcp://0.0.0.0:7711", 2)] {
        let listen = format!("transport.listen=[\"{listen}\"]");
        let output = peer.run(["config", "check", "--set", &listen]).expect_status(status);
        assert!(status == 0 || output.stderr.contains("tcps:// or zmqs://"), "{}", output.stderr);
    }
}
