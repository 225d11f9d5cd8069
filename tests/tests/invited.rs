//! Swarms by invitation with real processes: invite, join, publish, get, revoke.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;

#[cfg(target_os = "linux")]
use enjambre_core::protocol::error::ErrorCode;
#[cfg(target_os = "linux")]
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Tracker, Wire, World};
#[cfg(target_os = "linux")]
use enjambre_tests::outsider::{Outsider, open_connections_to};
use enjambre_tests::wait::{LONG, wait_for};
use rustix::process::Signal;

const INVITED: &str = "swarm.admission=\"invited\"";

#[test]
fn who_was_invited_publishes_and_gets_and_who_is_thrown_out_does_neither() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let invitation = tracker.invite(&["--uses", "2"]);
    let (mut a, id_a) = world.joined("a", &invitation);
    let (b, id_b) = world.joined("b", &invitation);
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
    assert_eq!(tracker.member(&id_a)["rights"], "full");
    wait_for("a is seen", LONG, || tracker.member(&id_a)["alive"] == true);

    let output = tracker.run(["revoke", &id_b[..8]]).ok();
    assert_eq!(output.stdout.trim(), format!("threw out {id_b}"), "its invitation is used up");
    assert!(tracker.member(&id_b)["revoked_ms"].is_u64());
    let output = b.run(["list"]).expect_status(1);
    assert!(output.stderr.contains("thrown out"), "{}", output.stderr);
    let output = b.run(["publish", file.to_str().unwrap(), "--name", "other"]).expect_status(4);
    assert!(output.stderr.contains("thrown out"), "{}", output.stderr);
    assert_eq!(a.run(["list"]).ok().stdout.lines().count(), 1);
}

#[test]
fn invitations_are_listed_and_cancelled_and_go_with_who_came_by_them() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[INVITED]);
    let made = tracker.run(["invite", "--uses", "3", "--json"]).ok().json();
    let (id, line) = (made[0]["id"].as_str().unwrap(), made[0]["invitation"].as_str().unwrap());
    let other = tracker.invite(&["--read-only"]);
    let listed = |tracker: &Tracker| tracker.run(["invite", "--list", "--json"]).ok().json();
    assert_eq!(listed(&tracker).len(), 2);
    let (_thief, thief_id) = world.joined("thief", line);
    let left = listed(&tracker).into_iter().find(|invitation| invitation["id"] == id).unwrap();
    assert_eq!((&left["uses"], &left["rights"]), (&2.into(), &"full".into()));
    assert_eq!(tracker.member(&thief_id)["invitations"][0], id);
    let text = tracker.run(["invite", "--list"]).ok().stdout;
    assert!(text.contains(&id[..16]) && !text.contains("enjambre1."), "{text}");

    let output = tracker.run(["revoke", &thief_id]).ok();
    assert!(output.stdout.contains("cancelled") && output.stdout.contains(&id[..16]), "{}", output.stdout);
    let again = world.newcomer("again");
    let output = again.run(["join", line]).expect_status(1);
    assert!(output.stderr.contains("used up, over, cancelled"), "{}", output.stderr);

    // The same on the database alone.
    let left = listed(&tracker);
    assert_eq!(left.len(), 1);
    tracker.kill();
    tracker.run(["invite", "--cancel", &left[0]["id"].as_str().unwrap()[..8]]).ok();
    assert_eq!(listed(&tracker), Vec::<serde_json::Value>::new());
    tracker.run(["invite", "--cancel", &left[0]["id"].as_str().unwrap()[..8]]).expect_status(3);
    tracker.run(["invite", "--list", "--uses", "3"]).expect_status(2);
    tracker.start();
    again.run(["join", &other]).expect_status(1);
}

#[test]
fn a_reader_gets_and_does_not_publish_and_a_reserved_name_is_its_owner_s() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let (mut writer, writer_id) = world.joined("writer", &tracker.invite(&[]));
    let (other, _) = world.joined("other", &tracker.invite(&[]));
    let (reader, _) = world.joined("reader", &tracker.invite(&["--read-only", "--expires", "1h"]));
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

#[cfg(target_os = "linux")]
#[test]
fn who_is_thrown_out_in_the_middle_of_a_download_is_cut_off_by_the_tracker_and_by_peers() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED, "tracker.lease=\"3s\""]);
    let (mut a, _) = world.joined("a", &tracker.invite(&[]));
    // Slow enough that nothing of this ends by itself.
    a.set("limits.upload=\"256KB/s\"");
    a.start();
    let (file, hash) = world.file("film.bin", 128 * MIB);
    a.publish(&file, &[]);
    let (mut b, b_id) = world.joined("b", &tracker.invite(&[]));
    b.set("download.patience=\"15s\"");
    let got = world.path("got.bin");
    let mut get = b.spawn(["get", "film.bin", "--json", "-o", got.to_str().unwrap()]);
    get.wait_event(|event| (event["done"].as_u64()? > 0).then_some(()));

    // One that would go on asking over what is open, whatever it is told.
    let outsider = Outsider::new().unwrap();
    let membership = outsider.join(&tracker.invite(&[])).unwrap();
    let (at_tracker, at_a) =
        (outsider.connect(tracker.endpoint()).unwrap(), outsider.connect(a.endpoint()).unwrap());
    at_tracker.ask(&Request::Status).unwrap();
    let introduction = Request::Introduce { membership };
    assert!(matches!(at_a.ask(&introduction), Ok(Reply::Introduced { membership: Some(_) })));
    let piece = |index| Request::Piece { id: hash.parse().unwrap(), index, sparing: false };
    let mut under_way: Vec<_> = (0..32).map(|index| at_a.asking(piece(index))).collect();
    at_a.ask(&Request::Status).expect("and so the pieces before it were asked for");
    wait_for("that over which it came in is closed", LONG, || {
        open_connections_to(tracker.endpoint()).unwrap() == 1
    });

    for id in [&outsider.peer().to_string(), &b_id] {
        tracker.run(["revoke", id]).ok();
    }
    wait_for("the tracker closes", LONG, || open_connections_to(tracker.endpoint()).unwrap() == 0);
    assert!(at_a.is_lost(under_way.pop().unwrap()).unwrap(), "what was under way is cut off");
    assert_eq!(open_connections_to(a.endpoint()).unwrap(), 0);
    // Over a new connection it is a stranger.
    assert_eq!(at_tracker.refused(&Request::Status).unwrap(), ErrorCode::Unauthorized);
    assert_eq!(at_a.refused(&introduction).unwrap(), ErrorCode::Unauthorized);
    assert_eq!(at_a.refused(&piece(0)).unwrap(), ErrorCode::Unauthorized);
    let output = get.wait(LONG).expect_status(4);
    assert!(output.stderr.contains("thrown out"), "{}", output.stderr);
    assert!(!got.exists());
}

#[test]
fn a_tracker_that_does_not_run_is_looked_after_on_its_database_alone() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[INVITED]);
    let (mut peer, id) = world.joined("peer", &tracker.invite(&[]));
    tracker.kill();
    let before = tracker.invite(&[]);
    assert_eq!(tracker.member(&id)["rights"], "full");
    tracker.run(["revoke", &id]).ok();
    let dump = tracker.run(["storage", "dump"]).ok();
    assert!(dump.stdout.contains("\"authority\""), "{}", dump.stdout);
    tracker.start();
    let (second, _) = world.joined("second", &before);
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
    let trackers = "peer.trackers=[\"zmq://127.0.0.1:7700\"]";
    let output = peer.run(["peer", "--set", &authority, "--set", trackers]).expect_status(2);
    assert!(
        output.stderr.contains("peer.trackers") && output.stderr.contains("zmqs://"),
        "{}",
        output.stderr
    );
    let tracker = world.tracker("closed");
    let plain = "transport.advertise=[\"zmqs://127.0.0.1:7701\", \"zmq://127.0.0.1:7702\"]";
    let output = tracker.run(["config", "check", "--set", INVITED, "--set", plain]).expect_status(2);
    assert!(output.stderr.contains("advertise") && output.stderr.contains("zmqs://"), "{}", output.stderr);
    // Beyond this machine where everybody is let in, too, unless it is asked for; the error names both ways out.
    let beyond = "transport.listen=[\"zmq://0.0.0.0:7700\"]";
    let output = peer.run(["config", "check", "--set", beyond]).expect_status(2);
    assert!(output.stderr.contains("open = true") && output.stderr.contains("zmqs://"), "{}", output.stderr);
    peer.run(["config", "check", "--set", beyond, "--set", "transport.open=true"]).ok();
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
    // A peer that lost the setting would serve anybody.
    let (mut member, _) = world.joined("member", &tracker.invite(&[]));
    let config = member.folder().join("enjambre.toml");
    let text = fs::read_to_string(&config).unwrap();
    let without: String =
        text.lines().filter(|line| !line.starts_with("authority")).map(|line| format!("{line}\n")).collect();
    assert_ne!(without.lines().count(), text.lines().count());
    fs::write(&config, without).unwrap();
    member.start();
    member.wait_stderr("swarm.authority is not set");
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
