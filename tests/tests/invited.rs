//! Swarms by invitation with real processes: invite, join, publish, get, revoke.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Peer, Tracker, Wire, World};
use enjambre_tests::wait::{LONG, wait_for};
use rustix::process::Signal;

const INVITED: &str = "swarm.admission=\"invited\"";

fn invite(tracker: &Tracker, arguments: &[&str]) -> String {
    let output = tracker.run([&["invite"], arguments].concat()).ok();
    let line = output.stdout.trim().to_owned();
    assert!(line.starts_with("enjambre1.") && !line.contains(char::is_whitespace), "{line}");
    line
}

/// A peer that came in, listening somewhere.
fn joined(world: &World, name: &str, invitation: &str) -> (Peer, String) {
    let peer = world.newcomer(name);
    let output = peer.run(["join", invitation, "--listen", "tcps://127.0.0.1:0", "--json"]).ok();
    let id = output.json()[0]["peer"].as_str().unwrap().to_owned();
    (peer, id)
}

fn member(tracker: &Tracker, id: &str) -> serde_json::Value {
    let members = tracker.run(["peers", "--json"]).ok().json();
    members.into_iter().find(|member| member["peer"] == id).unwrap()
}

#[test]
fn who_was_invited_publishes_and_gets_and_who_is_thrown_out_does_neither() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let invitation = invite(&tracker, &["--uses", "2"]);
    let (mut a, id_a) = joined(&world, "a", &invitation);
    let (b, id_b) = joined(&world, "b", &invitation);
    // It is used up, and who is in already may come again from the same folder.
    let late = world.newcomer("late");
    let output = late.run(["join", &invitation]).expect_status(1);
    assert!(output.stderr.contains("used up") && output.stderr.lines().count() == 1, "{}", output.stderr);
    let output = b.run(["join", &invitation]).expect_status(2);
    assert!(
        output.stderr.contains("already") && output.stderr.contains("enjambre.toml"),
        "{}",
        output.stderr
    );

    a.start();
    let (file, hash) = world.file("film.bin", 9 * MIB + 5);
    a.publish(&file, &[]);
    let listed = b.run(["list", "--json"]).ok().json();
    assert_eq!(listed[0]["publisher"], id_a.as_str());
    let path = world.path("got.bin");
    b.get_to("film.bin", &path);
    assert_eq!(hash_of(&path), hash);
    assert_eq!(member(&tracker, &id_a)["rights"], "full");
    wait_for("a is seen", LONG, || member(&tracker, &id_a)["alive"] == true);

    tracker.run(["revoke", &id_b[..8]]).ok();
    assert!(member(&tracker, &id_b)["revoked_ms"].is_u64());
    let output = b.run(["list"]).expect_status(1);
    assert!(output.stderr.contains("thrown out"), "{}", output.stderr);
    let output = b.run(["publish", file.to_str().unwrap(), "--name", "other"]).expect_status(4);
    assert!(output.stderr.contains("thrown out"), "{}", output.stderr);
    assert_eq!(a.run(["list"]).ok().stdout.lines().count(), 1);
}

#[test]
fn a_reader_gets_and_does_not_publish_and_a_reserved_name_is_its_owner_s() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let (mut writer, writer_id) = joined(&world, "writer", &invite(&tracker, &[]));
    let (other, _) = joined(&world, "other", &invite(&tracker, &[]));
    let (reader, _) = joined(&world, "reader", &invite(&tracker, &["--read-only", "--expires", "1h"]));
    writer.start();
    let (file, hash) = world.file("film.bin", MIB);
    let path = file.to_str().unwrap();
    tracker.run(["reserve", "film.bin", &writer_id[..8]]).ok();
    let output = other.run(["publish", path]).expect_status(1);
    assert!(output.stderr.contains("reserved"), "{}", output.stderr);
    writer.publish(&file, &[]);
    let output = reader.run(["publish", path, "--name", "mine"]).expect_status(1);
    assert!(output.stderr.contains("download only"), "{}", output.stderr);
    let got = world.path("got.bin");
    reader.get_to("film.bin", &got);
    assert_eq!(hash_of(&got), hash);
    tracker.run(["reserve", "film.bin", "--release"]).ok();
    tracker.run(["reserve", "film.bin", "--release"]).expect_status(3);
}

#[test]
fn a_tracker_that_does_not_run_is_looked_after_on_its_database_alone() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[INVITED]);
    let (mut peer, id) = joined(&world, "peer", &invite(&tracker, &[]));
    tracker.kill();
    let before = invite(&tracker, &[]);
    assert_eq!(member(&tracker, &id)["rights"], "full");
    tracker.run(["revoke", &id]).ok();
    let dump = tracker.run(["storage", "dump"]).ok();
    assert!(dump.stdout.contains("\"authority\""), "{}", dump.stdout);
    tracker.start();
    let (second, _) = joined(&world, "second", &before);
    second.run(["list"]).ok();
    peer.start();
    peer.wait_stderr("thrown out");
}

#[test]
fn plain_endpoints_are_refused_at_the_start_also_on_loopback() {
    let world = World::over(Wire::Secure);
    let peer = world.peer("peer", &[]);
    let authority = format!("swarm.authority=\"{}\"", "ab".repeat(32));
    let listen = "transport.listen=[\"tcp://127.0.0.1:7711\"]";
    let output = peer.run(["peer", "--set", &authority, "--set", listen]).expect_status(2);
    assert!(
        output.stderr.contains("by invitation") && output.stderr.contains("tcps://"),
        "{}",
        output.stderr
    );
    let open = world.tracker("open");
    let output = open.run(["invite"]).expect_status(2);
    assert!(output.stderr.contains("swarm.admission"), "{}", output.stderr);
    let output = peer.run(["join", "enjambre1.nonsense"]).expect_status(2);
    assert!(output.stderr.contains("copy the whole line"), "{}", output.stderr);
}

#[test]
fn a_swarm_by_invitation_is_not_opened_by_a_setting_that_is_missing() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[INVITED]);
    tracker.stop(Signal::TERM, LONG).ok();
    tracker.set("swarm.admission=\"open\"");
    let output = tracker.run(["tracker"]).expect_status(2);
    assert!(
        output.stderr.contains("swarm.admission") && output.stderr.contains("by invitation"),
        "{}",
        output.stderr
    );
    let peer = world.peer("peer", &[]);
    let output = peer.run(["config", "check", "--set", INVITED]).expect_status(2);
    assert!(output.stderr.contains("enjambre join"), "{}", output.stderr);
}
