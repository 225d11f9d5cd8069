//! Presence of peers: leave, death and return, and the death of trackers.

use std::fs;
use std::time::Duration;

use enjambre_tests::content::{MIB, hash_of, read_tree, write_file};
use enjambre_tests::node::{World, endpoint_in};
use enjambre_tests::process::Output;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_until};
use rustix::process::Signal;
use serde_json::json;

/// The guaranteed time for a shutdown after Ctrl-C or SIGTERM.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
const LEASE: Duration = Duration::from_secs(3);
const SHORT_LEASE: &str = "tracker.lease=3s";
/// The guaranteed time until a dead peer is not listed as a provider, and one call of `list`.
const EXPIRY_TIMEOUT: Duration =
    LEASE.saturating_add(Duration::from_secs(5)).saturating_add(Duration::from_secs(1));

#[test]
fn signalled_peer_leaves_immediately() {
    let world = World::default();
    let (file, _) = world.file("film.bin", MIB);
    // The lease is long, so only a `leave` request removes the provider.
    let tracker = world.tracker_with("tracker", &["tracker.lease=10min"]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.peer("b", &[&tracker]);
    for signal in [Signal::TERM, Signal::INT] {
        assert_eq!(b.providers("film.bin"), Some(1));
        a.stop(signal, SHUTDOWN_TIMEOUT).ok();
        assert_eq!(b.providers("film.bin"), Some(0), "after {signal:?}");
        a.start();
        b.wait_providers("film.bin", 1, TIMEOUT);
    }
}

#[test]
fn signal_stops_nodes_during_download() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 24 * MIB);
    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let mut b = world.running_peer_with("b", &[&tracker], &["limits.download=\"4MB/s\""]);
    let path = world.path("got.bin");
    let mut get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    get.wait_event(|event| (event["done"].as_u64() >= Some(MIB)).then_some(()));
    get.signal(Signal::INT);
    get.wait(SHUTDOWN_TIMEOUT).expect_status(130);
    assert!(!path.exists());

    let mut get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    get.wait_event(|event| (event["done"].as_u64() >= Some(2 * MIB)).then_some(()));
    a.stop(Signal::TERM, SHUTDOWN_TIMEOUT).ok();
    tracker.stop(Signal::TERM, SHUTDOWN_TIMEOUT).ok();
    b.stop(Signal::TERM, SHUTDOWN_TIMEOUT).ok();
    drop(get);

    tracker.start();
    a.start();
    b.set("limits.download=unlimited");
    b.get_to("film.bin", &path);
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn dead_peer_expires_and_suspended_peer_returns() {
    let world = World::default();
    let (file, _) = world.file("film.bin", MIB);
    let tracker = world.tracker_with("tracker", &[SHORT_LEASE]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.peer("b", &[&tracker]);
    assert_eq!(b.providers("film.bin"), Some(1));
    a.signal(Signal::STOP);
    b.wait_providers("film.bin", 0, EXPIRY_TIMEOUT);
    a.signal(Signal::CONT);
    b.wait_providers("film.bin", 1, TIMEOUT);
    a.kill();
    b.wait_providers("film.bin", 0, EXPIRY_TIMEOUT);
}

#[test]
fn restarted_tracker_keeps_catalogue_and_peers() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 2 * MIB);
    let mut tracker = world.tracker_with("tracker", &[SHORT_LEASE]);
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.peer("b", &[&tracker]);
    tracker.kill();
    b.run(["list", "--set", "download.provider_timeout=1s"]).expect_status(4);
    tracker.start();
    assert!(b.listed("film.bin").is_some(), "the catalogue is not available after the restart");
    b.wait_providers("film.bin", 1, TIMEOUT);
    // A has a new session, so it remains a provider after the grace period of one lease.
    a.wait_providers("film.bin", 1, TIMEOUT);
    b.get_to("film.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
}

#[test]
fn concurrent_publications_both_succeed() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let (one, one_hash) = world.file("one", MIB);
    let (two, two_hash) = world.file("two", MIB + 1);
    let a = world.running_peer("a", &[&tracker]);
    let b = world.running_peer("b", &[&tracker]);
    let publish = |peer: &enjambre_tests::node::Peer, file: &std::path::Path| {
        peer.spawn(["publish", file.to_str().unwrap(), "--name", "film.bin"])
    };
    let (first, second) = (publish(&a, &one), publish(&b, &two));
    first.wait(TIMEOUT).ok();
    second.wait(TIMEOUT).ok();
    let mut ids: Vec<_> = a.list().iter().map(|file| file["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    let mut expected = [one_hash, two_hash];
    expected.sort();
    assert_eq!(ids, expected);
}

#[test]
fn one_of_two_trackers_can_die() {
    check_tracker_death(World::default());
}

#[test]
fn one_of_two_trackers_over_tcp_can_die() {
    check_tracker_death(World::over(Wire::Tcp));
}

fn check_tracker_death(world: World) {
    let (early, early_hash) = world.file("early.bin", MIB);
    let (late, late_hash) = world.file("late.bin", MIB + 1);
    let mut first = world.tracker("t1");
    let second = world.tracker("t2");
    let a = world.running_peer("a", &[&first, &second]);
    a.publish(&early, &[]);
    let only_second = world.peer("s", &[&second]);
    only_second.wait_providers("early.bin", 1, TIMEOUT);

    first.kill();
    let b = world.running_peer("b", &[&first, &second]);
    b.get_to("early.bin", &world.path("early"));
    assert_eq!(hash_of(&world.path("early")), early_hash);
    a.publish(&late, &[]);
    b.get_to("late.bin", &world.path("late"));
    assert_eq!(hash_of(&world.path("late")), late_hash);

    // Publications during its outage reach the first tracker after its restart.
    first.start();
    let only_first = world.peer("f", &[&first]);
    only_first.wait_providers("late.bin", 2, TIMEOUT);
    only_first.wait_providers("early.bin", 2, TIMEOUT);
}

#[test]
fn pinned_file_outlives_publisher() {
    check_pinned_file(World::default());
}

#[test]
fn file_pinned_over_tcp_outlives_publisher() {
    check_pinned_file(World::over(Wire::Tcp));
}

fn check_pinned_file(world: World) {
    let (file, hash) = world.file("film.bin", 6 * MIB);
    let mut tracker =
        world.tracker_with("tracker", &["tracker.store.enabled=true", "tracker.store.quota=\"32MiB\""]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &["--pin"]);
    a.kill();
    fs::remove_file(&file).unwrap();
    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("b.bin"));
    assert_eq!(hash_of(&world.path("b.bin")), hash);

    tracker.kill();
    tracker.start();
    let c = world.peer("c", &[&tracker]);
    c.get_to("film.bin", &world.path("c.bin"));
    assert_eq!(hash_of(&world.path("c.bin")), hash);

    a.start();
    let (large, _) = world.file("large.bin", 11 * MIB);
    let refused = a.run(["publish", large.to_str().unwrap(), "--pin"]).expect_status(1);
    assert!(!refused.stderr.is_empty(), "the error message is empty");
}

#[test]
fn tracker_without_its_replicas_is_refused_without_init() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 2 * MIB);
    let mut tracker =
        world.tracker_with("tracker", &["tracker.store.enabled=true", "library.content=\"files\""]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &["--pin"]);
    tracker.kill();
    let content = tracker.folder().join("data/store/content");
    fs::rename(&content, world.path("elsewhere")).unwrap();
    let refused = tracker.try_start().unwrap_err().expect_status(1);
    assert!(refused.stderr.contains("is empty") && refused.stderr.contains("--init"), "{}", refused.stderr);
    // The directory was mounted too late: nothing was lost.
    let _ = fs::remove_dir_all(&content);
    fs::rename(world.path("elsewhere"), &content).unwrap();
    tracker.start();
    a.kill();
    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("b.bin"));
    assert_eq!(hash_of(&world.path("b.bin")), hash);

    tracker.kill();
    fs::remove_dir_all(&content).unwrap();
    let mut initialized = tracker.spawn(["tracker", "--init"]);
    initialized.wait_line(TIMEOUT, endpoint_in);
    initialized.kill();
    a.start();
    tracker.start();
    let pins = || tracker.run(["pins", "--json"]).ok().json();
    wait_until("the replica is fetched again", TIMEOUT, || (pins()[0]["complete"] == true).then_some(()));
}

#[test]
fn pinned_directory_outlives_publisher_and_uses_quota() {
    let world = World::default();
    let folder = |name: &str, sizes: [u64; 2]| {
        let folder = world.path(name);
        fs::create_dir(&folder).unwrap();
        for (n, size) in sizes.into_iter().enumerate() {
            write_file(&folder.join(n.to_string()), size, size + n as u64);
        }
        folder
    };
    let (small, large) = (folder("small", [5 * MIB, 5 * MIB]), folder("large", [4 * MIB, 3 * MIB]));
    let content = read_tree(&small);
    let tracker =
        world.tracker_with("tracker", &["tracker.store.enabled=true", "tracker.store.quota=\"32MiB\""]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&small, &["--pin"]);
    let (file, _) = world.file("too-large.bin", 7 * MIB);
    a.run(["publish", file.to_str().unwrap(), "--pin"]).expect_status(1);
    a.run(["publish", large.to_str().unwrap(), "--pin"]).expect_status(1);
    // Refused pins do not count towards the quota.
    let (file, _) = world.file("small.bin", 5 * MIB);
    a.publish(&file, &["--pin"]);
    a.kill();
    fs::remove_dir_all(&small).unwrap();
    let b = world.peer("b", &[&tracker]);
    b.get_to("small", &world.path("copy"));
    assert!(read_tree(&world.path("copy")) == content, "the downloaded directory differs");
}

#[test]
fn pins_are_listed_and_removed_by_peer_and_operator() {
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &["tracker.store.enabled=true"]);
    let a = world.running_peer("a", &[&tracker]);
    let b = world.peer("b", &[&tracker]);
    let files = [("first.bin", 1), ("second.bin", 2), ("third.bin", 3)]
        .map(|(name, size)| world.file(name, size * MIB).0);
    files.iter().for_each(|file| drop(a.publish(file, &["--pin"])));
    let listed = |output: Output| -> Vec<String> {
        let mut names: Vec<_> = output
            .ok()
            .json()
            .iter()
            .map(|pin| {
                assert_eq!(pin["complete"], true);
                pin["name"].as_str().unwrap().to_owned()
            })
            .collect();
        names.sort();
        names
    };
    let pins = ["pins", "--json"];
    assert_eq!(listed(a.run(pins)), ["first.bin", "second.bin", "third.bin"]);
    assert_eq!(listed(tracker.run(pins)), ["first.bin", "second.bin", "third.bin"]);
    assert_eq!(listed(b.run(pins)), [""; 0], "pins of another peer");
    // A pin is listed with the newest name of its file, and found by all names.
    a.publish(&files[0], &["--name", "newer.bin"]);
    a.publish(&files[2], &["--name", "other.bin"]);
    b.publish(&files[1], &["--pin"]);
    assert_eq!(listed(b.run(pins)), ["second.bin"], "also pinned by another peer");
    b.run(["unpin", "first.bin"]).expect_status(3);
    a.run(["unpin", "first.bin"]).ok();
    // An operator removes the pins of all peers.
    assert!(tracker.run(["unpin", "second.bin"]).ok().stdout.starts_with("unpinned "));
    assert_eq!(listed(b.run(pins)), [""; 0]);
    assert_eq!(listed(a.run(pins)), ["other.bin"]);
    let status = || a.run(["status", "--json"]).ok().json().remove(1)["store"].clone();
    assert_eq!((&status()["pins"], &status()["reserved"]), (&json!(1), &json!(3 * MIB)));
    // The operator can also remove pins while the tracker is stopped.
    tracker.kill();
    tracker.run(["unpin", "third.bin"]).ok();
    assert_eq!(listed(tracker.run(pins)), [""; 0]);
    tracker.start();
    assert_eq!(status()["pins"], json!(0));
}

#[test]
fn tracker_without_store_refuses_pin() {
    let world = World::default();
    let (file, _) = world.file("film.bin", MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let refused = a.run(["publish", file.to_str().unwrap(), "--pin"]).expect_status(1);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
}

#[test]
fn pin_requires_provider_unless_replica_exists() {
    let world = World::default();
    let (file, _) = world.file("film.bin", MIB);
    let tracker = world.tracker_with("tracker", &["tracker.store.enabled=true"]);
    let a = world.peer_with("a", &[&tracker], &["transport.listen=[]"]);
    let pin = ["publish", file.to_str().unwrap(), "--pin"];
    let refused = a.run(pin).expect_status(1);
    assert!(refused.stderr.contains("transport.listen"), "{}", refused.stderr);
    let b = world.running_peer("b", &[&tracker]);
    b.publish(&file, &["--pin"]);
    a.run(pin).ok();
}
