//! Who is there: leaving, dying, coming back, and trackers that die.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;
use std::time::Duration;

use enjambre_tests::content::{MIB, hash_of, read_tree, write_file};
use enjambre_tests::node::{Wire, World};
use enjambre_tests::wait::LONG;
use rustix::process::Signal;

/// What the product promises for Ctrl-C and SIGTERM.
const LEAVE: Duration = Duration::from_secs(5);
const LEASE: Duration = Duration::from_secs(3);
const SHORT_LEASE: &str = "tracker.lease=3s";
/// What the product promises for the death of a peer, and one call of `list`.
const NOTICED: Duration = LEASE.saturating_add(Duration::from_secs(5)).saturating_add(Duration::from_secs(1));

#[test]
fn a_signal_makes_a_peer_leave_at_once() {
    let world = World::default();
    let (file, _) = world.file("film.bin", MIB);
    // The lease is long: only a `leave` takes the peer off the list.
    let tracker = world.tracker_with("tracker", &["tracker.lease=10min"]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.peer("b", &[&tracker]);
    for signal in [Signal::TERM, Signal::INT] {
        assert_eq!(b.providers("film.bin"), Some(1));
        a.stop(signal, LEAVE).ok();
        assert_eq!(b.providers("film.bin"), Some(0), "after {signal:?}");
        a.start();
        b.wait_providers("film.bin", 1, LONG);
    }
}

#[test]
fn a_signal_ends_a_peer_and_a_tracker_in_the_middle_of_a_download() {
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
    let output = get.wait(LEAVE);
    assert_ne!(output.status, Some(0), "it was not complete");
    assert!(!path.exists());

    let mut get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    get.wait_event(|event| (event["done"].as_u64() >= Some(2 * MIB)).then_some(()));
    a.stop(Signal::TERM, LEAVE).ok();
    tracker.stop(Signal::TERM, LEAVE).ok();
    b.stop(Signal::TERM, LEAVE).ok();
    drop(get);

    tracker.start();
    a.start();
    b.set("limits.download=unlimited");
    b.get_to("film.bin", &path);
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn a_dead_peer_is_off_the_list_within_a_lease_and_a_sleeping_one_comes_back() {
    let world = World::default();
    let (file, _) = world.file("film.bin", MIB);
    let tracker = world.tracker_with("tracker", &[SHORT_LEASE]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.peer("b", &[&tracker]);
    assert_eq!(b.providers("film.bin"), Some(1));
    a.signal(Signal::STOP);
    b.wait_providers("film.bin", 0, NOTICED);
    a.signal(Signal::CONT);
    b.wait_providers("film.bin", 1, LONG);
    a.kill();
    b.wait_providers("film.bin", 0, NOTICED);
}

#[test]
fn a_restarted_tracker_keeps_its_catalogue_and_hears_from_its_peers_again() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 2 * MIB);
    let mut tracker = world.tracker_with("tracker", &[SHORT_LEASE]);
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.peer("b", &[&tracker]);
    tracker.kill();
    b.run(["list", "--set", "download.patience=1s"]).expect_status(4);
    tracker.start();
    assert!(b.listed("film.bin").is_some(), "the catalogue is there at once");
    b.wait_providers("film.bin", 1, LONG);
    // And for longer than the grace of one lease: A has a session again.
    a.wait_providers("film.bin", 1, LONG);
    b.get_to("film.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
}

#[test]
fn peers_that_publish_at_the_same_moment_both_land() {
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
    first.wait(LONG).ok();
    second.wait(LONG).ok();
    let mut ids: Vec<_> = a.list().iter().map(|file| file["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    let mut expected = [one_hash, two_hash];
    expected.sort();
    assert_eq!(ids, expected);
}

#[test]
fn with_two_trackers_the_death_of_one_is_not_felt() {
    the_death_of_one_is_not_felt(World::default());
}

#[test]
fn with_two_trackers_over_tcp_the_death_of_one_is_not_felt() {
    the_death_of_one_is_not_felt(World::over(Wire::Tcp));
}

fn the_death_of_one_is_not_felt(world: World) {
    let (early, early_hash) = world.file("early.bin", MIB);
    let (late, late_hash) = world.file("late.bin", MIB + 1);
    let mut first = world.tracker("t1");
    let second = world.tracker("t2");
    let a = world.running_peer("a", &[&first, &second]);
    a.publish(&early, &[]);
    let only_second = world.peer("s", &[&second]);
    only_second.wait_providers("early.bin", 1, LONG);

    first.kill();
    let b = world.running_peer("b", &[&first, &second]);
    b.get_to("early.bin", &world.path("early"));
    assert_eq!(hash_of(&world.path("early")), early_hash);
    a.publish(&late, &[]);
    b.get_to("late.bin", &world.path("late"));
    assert_eq!(hash_of(&world.path("late")), late_hash);

    // What was published while it was away reaches the first tracker when it is back.
    first.start();
    let only_first = world.peer("f", &[&first]);
    only_first.wait_providers("late.bin", 2, LONG);
    only_first.wait_providers("early.bin", 2, LONG);
}

#[test]
fn a_pinned_file_stays_when_its_publisher_is_gone() {
    a_pinned_file_stays(World::default());
}

#[test]
fn a_file_pinned_over_tcp_stays_when_its_publisher_is_gone() {
    a_pinned_file_stays(World::over(Wire::Tcp));
}

fn a_pinned_file_stays(world: World) {
    let (file, hash) = world.file("film.bin", 6 * MIB);
    let mut tracker =
        world.tracker_with("tracker", &["tracker.store.enabled=true", "tracker.store.quota=\"16MiB\""]);
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
    assert!(!refused.stderr.is_empty(), "it says that there is no room");
}

#[test]
fn a_pinned_folder_stays_with_its_files_and_takes_their_room() {
    let world = World::default();
    let folder = |name: &str, sizes: [u64; 2]| {
        let folder = world.path(name);
        fs::create_dir(&folder).unwrap();
        for (n, size) in sizes.into_iter().enumerate() {
            write_file(&folder.join(n.to_string()), size, size + n as u64);
        }
        folder
    };
    let (fits, does_not) = (folder("fits", [5 * MIB, 5 * MIB]), folder("large", [4 * MIB, 3 * MIB]));
    let content = read_tree(&fits);
    let tracker =
        world.tracker_with("tracker", &["tracker.store.enabled=true", "tracker.store.quota=\"16MiB\""]);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&fits, &["--pin"]);
    let (file, _) = world.file("too-large.bin", 7 * MIB);
    a.run(["publish", file.to_str().unwrap(), "--pin"]).expect_status(1);
    a.run(["publish", does_not.to_str().unwrap(), "--pin"]).expect_status(1);
    // What was refused takes no room.
    let (file, _) = world.file("small.bin", 5 * MIB);
    a.publish(&file, &["--pin"]);
    a.kill();
    fs::remove_dir_all(&fits).unwrap();
    let b = world.peer("b", &[&tracker]);
    b.get_to("fits", &world.path("copy"));
    assert!(read_tree(&world.path("copy")) == content, "the folder is another");
}

#[test]
fn a_tracker_without_a_store_refuses_to_pin() {
    let world = World::default();
    let (file, _) = world.file("film.bin", MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let refused = a.run(["publish", file.to_str().unwrap(), "--pin"]).expect_status(1);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
}

#[test]
fn who_offers_nothing_cannot_have_a_copy_made_but_asks_for_one_that_is_there() {
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
