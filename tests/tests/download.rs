//! Downloads: resumed, shared, with and without a daemon, from linked, copied and changed files, and held to a rate.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Peer, Wire, World};
use enjambre_tests::process::Process;
use enjambre_tests::wait::LONG;
use serde_json::Value;

/// What may have to be fetched again after `kill -9`.
const RESUME_LOSS: u64 = 16 * MIB;

fn done(event: &Value) -> Option<u64> {
    (event["event"] == "progress").then(|| event["done"].as_u64().expect("a number of bytes"))
}

fn wait_done(get: &mut Process, at_least: u64) -> u64 {
    get.wait_event(|event| done(event).filter(|done| *done >= at_least))
}

/// Where a killed `get` goes on. It is told slowly, so that the first event says what was there and little more; then
/// it is killed again, and the limit taken away.
fn resumed_at(peer: &mut Peer, args: &[&str]) -> u64 {
    peer.set("limits.download=\"256KiB/s\"");
    let mut get = peer.spawn(args);
    let done = wait_done(&mut get, 1);
    get.kill();
    peer.set("limits.download=unlimited");
    done
}

#[test]
fn a_killed_get_goes_on_where_it_was() {
    goes_on_where_it_was(World::default());
}

#[test]
fn a_killed_get_over_zmq_goes_on_where_it_was() {
    goes_on_where_it_was(World::over(Wire::Zmq));
}

fn goes_on_where_it_was(world: World) {
    let size = 56 * MIB;
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let mut b = world.peer("b", &[&tracker]);
    b.set("limits.download=\"16MB/s\"");
    let mut get = b.spawn(["get", "film.bin", "--json"]);
    let killed_at = wait_done(&mut get, 28 * MIB);
    get.kill();
    let resumed_at = resumed_at(&mut b, &["get", "film.bin", "--json"]);
    assert!(resumed_at + RESUME_LOSS >= killed_at, "had {killed_at}, went on at {resumed_at}");
    b.run(["get", "film.bin"]).ok();
    // What A has sent includes what was on the way in buffers when the process was killed.
    let (sent, in_buffers) = (a.sent(), 10 * MIB);
    assert!(sent <= size + RESUME_LOSS + in_buffers, "{sent} bytes were sent for {size}");
    let exported = world.path("film");
    b.run(["export", "film.bin", "-o", exported.to_str().unwrap()]).ok();
    assert_eq!(hash_of(&exported), hash);
}

#[test]
fn a_killed_get_to_a_path_goes_on_where_it_was() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 40 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let mut b = world.peer("b", &[&tracker]);
    let path = world.path("got.bin");
    let args = ["get", "film.bin", "--json", "-o", path.to_str().unwrap()];
    b.set("limits.download=\"16MB/s\"");
    let mut get = b.spawn(args);
    let killed_at = wait_done(&mut get, 24 * MIB);
    get.kill();
    assert!(!path.exists(), "the path is there before it is complete");
    let resumed_at = resumed_at(&mut b, &args);
    assert!(resumed_at + RESUME_LOSS >= killed_at, "had {killed_at}, went on at {resumed_at}");
    b.run(args).ok();
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn a_get_survives_the_death_of_the_daemon_that_it_joined() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 24 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let mut b = world.running_peer_with("b", &[&tracker], &["limits.download=\"8MB/s\""]);
    let path = world.path("got.bin");
    let mut get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    wait_done(&mut get, 4 * MIB);
    b.kill();
    get.wait(LONG).ok();
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn two_gets_of_one_file_are_one_download() {
    let world = World::default();
    let size = 12 * MIB;
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    for (name, with_daemon) in [("with", true), ("without", false)] {
        let sent_before = a.sent();
        let mut b = world.peer_with(name, &[&tracker], &["limits.download=\"6MB/s\""]);
        if with_daemon {
            b.start();
        }
        let paths = [world.path(format!("{name}-1.bin")), world.path(format!("{name}-2.bin"))];
        let mut first = b.spawn(["get", "film.bin", "--json", "-o", paths[0].to_str().unwrap()]);
        wait_done(&mut first, 1);
        let second = b.spawn(["get", "film.bin", "--json", "-o", paths[1].to_str().unwrap()]);
        first.wait(LONG).ok();
        second.wait(LONG).ok();
        for path in &paths {
            assert_eq!(hash_of(path), hash);
        }
        // Nothing failed on the way, so each piece was sent once; a few may be asked for twice at the end.
        let sent = a.sent() - sent_before;
        assert!((size..size + 4 * MIB).contains(&sent), "{sent} bytes were sent for {size}, {name} daemon");
    }
}

#[test]
fn a_get_without_a_daemon_leaves_when_it_is_done() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 3 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
    assert_eq!(a.providers("film.bin"), Some(1), "nobody but A serves it now");
}

#[test]
fn the_daemon_serves_what_a_get_through_it_fetched() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 3 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.running_peer("b", &[&tracker]);
    b.run(["get", "film.bin", "--sync"]).ok();
    a.wait_providers("film.bin", 2, LONG);
    let library = b.in_library("film.bin").expect("it is in the library");
    assert_eq!(library["path"], Value::Null, "{library}");
}

#[test]
fn a_path_with_other_content_is_left_alone() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let path = world.path("mine.txt");
    fs::write(&path, "mine").unwrap();
    let args = ["get", "film.bin", "-o", path.to_str().unwrap()];
    a.run(args).expect_status(1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let b = world.peer("b", &[&tracker]);
    b.run(args).expect_status(1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    b.run(args.into_iter().chain(["--force"])).ok();
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn a_linked_file_that_changed_is_withdrawn_and_never_delivered() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 4 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    OpenOptions::new().write(true).open(&file).unwrap().write_all_at(b"changed", 3 * MIB).unwrap();

    let b = world.peer_with("b", &[&tracker], &["download.patience=2s"]);
    let path = world.path("got.bin");
    b.run(["get", "film.bin", "-o", path.to_str().unwrap()]).expect_status(4);
    assert!(!path.exists());
    b.wait_providers("film.bin", 0, LONG);
}

#[test]
fn a_linked_file_that_vanished_is_withdrawn() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 4 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    fs::remove_file(&file).unwrap();

    let b = world.peer_with("b", &[&tracker], &["download.patience=2s"]);
    b.run(["get", "film.bin"]).expect_status(4);
    b.wait_providers("film.bin", 0, LONG);

    // It kept its state, and completes when the file is back.
    assert_eq!(world.file("film.bin", 4 * MIB).1, hash);
    a.publish(&file, &[]);
    b.run(["get", "film.bin"]).ok();
}

#[test]
fn a_stored_file_outlives_its_original() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 4 * MIB);
    let tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &["--store"]);
    fs::remove_file(&file).unwrap();
    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("b.bin"));
    assert_eq!(hash_of(&world.path("b.bin")), hash);
    a.kill();
    a.start();
    let c = world.peer("c", &[&tracker]);
    c.get_to("film.bin", &world.path("c.bin"));
    assert_eq!(hash_of(&world.path("c.bin")), hash);
}

#[test]
fn remove_takes_it_out_of_the_library_and_leaves_a_linked_file() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 2 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.running_peer("b", &[&tracker]);
    b.run(["get", "film.bin"]).ok();
    a.wait_providers("film.bin", 2, LONG);
    b.run(["remove", "film.bin"]).ok();
    assert_eq!(b.in_library("film.bin"), None);
    a.wait_providers("film.bin", 1, LONG);
    a.run(["remove", &hash]).ok();
    a.wait_providers("film.bin", 0, LONG);
    assert_eq!(hash_of(&file), hash);
}

#[test]
fn a_download_takes_at_least_as_long_as_its_limit_says() {
    let world = World::default();
    let size = 8 * MIB;
    let (file, _) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer_with("a", &[&tracker], &["limits.upload=\"4MB/s\""]);
    a.publish(&file, &[]);
    let seconds = |output: &enjambre_tests::process::Output| {
        output.json().last().expect("a last event")["seconds"].as_f64().expect("seconds")
    };
    // At 4 MB/s 8 MiB take 2.1 s. A short burst at the start is allowed for; a slow machine only takes longer.
    let b = world.peer("b", &[&tracker]);
    let upload = seconds(&b.run(["get", "film.bin", "--json"]).ok());
    assert!(upload > 1.5, "{upload} s with an upload limit");
    let d = world.running_peer("d", &[&tracker]);
    d.publish(&file, &[]);
    let c = world.peer_with("c", &[&tracker], &["limits.download=\"4MB/s\""]);
    let download = seconds(&c.run(["get", "film.bin", "--json"]).ok());
    assert!(download > 1.5, "{download} s with a download limit");
}

#[test]
fn files_at_the_edges_arrive() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let b = world.running_peer("b", &[&tracker]);
    let piece = 256 * 1024;
    for size in [0, 1, piece - 1, piece, piece + 1, 2 * piece, 2 * piece + 1] {
        let name = format!("of-{size}-bytes");
        let (file, hash) = world.file(&name, size);
        a.publish(&file, &[]);
        assert_eq!(b.listed(&name).expect("it is listed")["id"], hash.as_str());
        b.get_to(&name, &world.path(format!("got-{size}")));
        assert_eq!(hash_of(&world.path(format!("got-{size}"))), hash, "{size} bytes");
        b.run(["get", &hash]).ok();
    }
}

#[test]
fn the_newest_version_of_a_name_is_the_one_that_is_found() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let (old, old_hash) = world.file("old", MIB);
    let (new, new_hash) = world.file("new", MIB + 1);
    a.publish(&old, &["--name", "film.bin"]);
    a.publish(&new, &["--name", "film.bin"]);
    let b = world.running_peer("b", &[&tracker]);
    let ids: Vec<_> = b.list().iter().map(|file| file["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, [new_hash.clone(), old_hash.clone()], "newest first");
    b.get_to("film.bin", &world.path("b.bin"));
    assert_eq!(hash_of(&world.path("b.bin")), new_hash);
    b.get_to(&old_hash, &world.path("old.bin"));
    assert_eq!(hash_of(&world.path("old.bin")), old_hash);
}
