//! Invite-only swarms: invite, join, publish, get and revoke.

use std::fs;
use std::process::Command;

#[cfg(target_os = "linux")]
use enjambre_core::protocol::error::ErrorCode;
#[cfg(target_os = "linux")]
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Tracker, World};
#[cfg(target_os = "linux")]
use enjambre_tests::outsider::{Outsider, open_connections_to};
use enjambre_tests::process::Process;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use rustix::process::Signal;

const INVITED: &str = "swarm.admission=\"invite\"";

#[test]
fn members_publish_and_get_until_revoked() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let invitation = tracker.invite(&["--uses", "2"]);
    let (mut a, id_a) = world.joined("a", &invitation);
    let (b, id_b) = world.joined("b", &invitation);
    // The invitation is used up, and a member cannot join again.
    let late = world.unconfigured_peer("late");
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
    wait_for("peer a is online", TIMEOUT, || tracker.member(&id_a)["online"] == true);

    let output = tracker.run(["revoke", &id_b[..8]]).ok();
    assert_eq!(output.stdout.trim(), format!("revoked {id_b}"), "its invitation is used up");
    assert!(tracker.member(&id_b)["revoked_ms"].is_u64());
    let output = b.run(["list"]).expect_status(1);
    assert!(output.stderr.contains("revoked"), "{}", output.stderr);
    let output = b.run(["publish", file.to_str().unwrap(), "--name", "other"]).expect_status(4);
    assert!(output.stderr.contains("revoked"), "{}", output.stderr);
    assert_eq!(a.run(["list"]).ok().stdout.lines().count(), 1);
}

#[test]
fn join_without_config_uses_directories_of_user() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let mut command = Command::new(binary::enjambre());
    command
        .args(["join", &tracker.invite(&[]), "--listen", "tcps://127.0.0.1:0"])
        .current_dir(world.path(""));
    let output = Process::start_command(&world.path(""), command).wait(TIMEOUT).ok();
    let config = world.path("no-user-config/enjambre/enjambre.toml");
    assert!(
        output.stdout.contains(&format!("enjambre peer --config {}", config.display())),
        "{}",
        output.stdout
    );
    let data_dir = world.path("no-user-data/enjambre");
    assert!(data_dir.join("key").exists());
    let shown =
        Process::start(&world.path(""), ["config", "show", config.to_str().unwrap()]).wait(TIMEOUT).ok();
    assert!(shown.stdout.contains(&format!("data_dir = {data_dir:?}")), "{}", shown.stdout);
}

#[test]
fn data_directory_of_join_is_written_to_the_configuration() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let invitation = tracker.invite(&[]);
    let mut peer = world.unconfigured_peer("peer");
    let other = peer.folder().join("other");
    let join = ["join", &invitation, "--listen", "tcps://127.0.0.1:0", "--set", "peer.data_dir=other"];
    peer.run(join).ok();
    assert!(other.join("key").exists());
    let shown = peer.run(["config", "show"]).ok().stdout;
    assert!(shown.contains(&format!("data_dir = {other:?}")), "{shown}");
    peer.start();
    peer.run(["list"]).ok();
}

#[test]
fn join_with_a_key_keeps_the_identity() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED]);
    let invitation = tracker.invite(&[]);
    let peer = world.unconfigured_peer("peer");
    let join = || peer.run(["join", &invitation, "--listen", "tcps://127.0.0.1:0"]).ok().stdout;
    let (first, config) = (join(), peer.folder().join("enjambre.toml"));
    fs::remove_file(config).unwrap();
    let second = join();
    assert_eq!(first.lines().next(), second.lines().next());
    assert!(
        !first.contains("keeps its identity") && second.contains("keeps its identity"),
        "{first}{second}"
    );
}

#[test]
fn failed_join_creates_no_data_directory() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[INVITED]);
    let cancelled = tracker.invite(&[]);
    let id = tracker.run(["invite", "--list", "--json"]).ok().json()[0]["id"].as_str().unwrap().to_owned();
    tracker.run(["invite", "--cancel", &id]).ok();
    let valid = tracker.invite(&[]);
    let peer = world.unconfigured_peer("peer");
    let join = |invitation: &str| {
        let output = peer.run(["join", invitation, "--set", "peer.data_dir=new/data"]);
        assert!(!peer.folder().join("new").exists(), "{}", output.stderr);
        output
    };
    join(&cancelled).expect_status(1);
    tracker.kill();
    join(&valid).expect_status(4);
}

#[test]
fn invitations_are_listed_cancelled_and_revoked_with_peer() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[INVITED]);
    let made = tracker.run(["invite", "--uses", "3", "--json"]).ok().json();
    let (id, line) = (made[0]["id"].as_str().unwrap(), made[0]["invitation"].as_str().unwrap());
    let other = tracker.invite(&["--read-only"]);
    let listed = |tracker: &Tracker| tracker.run(["invite", "--list", "--json"]).ok().json();
    assert_eq!(listed(&tracker).len(), 2);
    let (_member, member_id) = world.joined("member", line);
    let remaining = listed(&tracker).into_iter().find(|invitation| invitation["id"] == id).unwrap();
    assert_eq!((&remaining["uses"], &remaining["rights"]), (&2.into(), &"full".into()));
    assert_eq!(tracker.member(&member_id)["invitations"][0], id);
    let text = tracker.run(["invite", "--list"]).ok().stdout;
    assert!(text.contains(&id[..16]) && !text.contains("enjambre1."), "{text}");

    let output = tracker.run(["revoke", &member_id]).ok();
    assert!(output.stdout.contains("cancelled") && output.stdout.contains(&id[..16]), "{}", output.stdout);
    let again = world.unconfigured_peer("again");
    let output = again.run(["join", line]).expect_status(1);
    assert!(output.stderr.contains("used up, expired, cancelled"), "{}", output.stderr);

    // The same commands work on the database of a stopped tracker.
    let remaining = listed(&tracker);
    assert_eq!(remaining.len(), 1);
    tracker.kill();
    tracker.run(["invite", "--cancel", &remaining[0]["id"].as_str().unwrap()[..8]]).ok();
    assert_eq!(listed(&tracker), Vec::<serde_json::Value>::new());
    tracker.run(["invite", "--cancel", &remaining[0]["id"].as_str().unwrap()[..8]]).expect_status(3);
    tracker.run(["invite", "--list", "--uses", "3"]).expect_status(2);
    tracker.start();
    again.run(["join", &other]).expect_status(1);
}

#[test]
fn read_only_member_and_reserved_name_are_enforced() {
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
    assert!(output.stderr.contains("read-only rights"), "{}", output.stderr);
    let got = world.path("got.bin");
    reader.get_to("film.bin", &got);
    assert_eq!(hash_of(&got), hash);
    tracker.run(["reserve", "film.bin", "--release"]).ok();
    tracker.run(["reserve", "film.bin", "--release"]).expect_status(3);
}

#[cfg(target_os = "linux")]
#[test]
fn revocation_ends_download_in_progress() {
    let world = World::over(Wire::Secure);
    let tracker = world.tracker_with("tracker", &[INVITED, "tracker.lease=\"3s\""]);
    let (mut a, _) = world.joined("a", &tracker.invite(&[]));
    // Slow enough that no transfer completes during the test.
    a.set("limits.upload=\"256KB/s\"");
    a.start();
    let (file, hash) = world.file("film.bin", 128 * MIB);
    a.publish(&file, &[]);
    let (mut b, b_id) = world.joined("b", &tracker.invite(&[]));
    b.set("download.provider_timeout=\"15s\"");
    let got = world.path("got.bin");
    let mut get = b.spawn(["get", "film.bin", "--json", "-o", got.to_str().unwrap()]);
    get.wait_event(|event| (event["done"].as_u64()? > 0).then_some(()));

    // An outsider that keeps its connections open and ignores its revocation.
    let outsider = Outsider::new().unwrap();
    let membership = outsider.join(&tracker.invite(&[])).unwrap();
    let (at_tracker, at_a) =
        (outsider.connect(tracker.endpoint()).unwrap(), outsider.connect(a.endpoint()).unwrap());
    at_tracker.request(&Request::Status).unwrap();
    let authorization = Request::Authorize { membership };
    assert!(matches!(at_a.request(&authorization), Ok(Reply::Authorized { membership: Some(_) })));
    let piece = |index| Request::Piece { id: hash.parse().unwrap(), index, super_seed: false };
    let mut pending: Vec<_> = (0..32).map(|index| at_a.spawn_request(piece(index))).collect();
    at_a.request(&Request::Status).expect("the peer has received the preceding requests");
    wait_for("the join connection is closed", TIMEOUT, || {
        open_connections_to(tracker.endpoint()).unwrap() == 1
    });

    for id in [&outsider.peer().to_string(), &b_id] {
        tracker.run(["revoke", id]).ok();
    }
    wait_for("the tracker closes the connection", TIMEOUT, || {
        open_connections_to(tracker.endpoint()).unwrap() == 0
    });
    assert!(at_a.is_connection_lost(pending.pop().unwrap()).unwrap(), "the pending request succeeded");
    wait_for("the peer closes the connection", TIMEOUT, || open_connections_to(a.endpoint()).unwrap() == 0);
    // New connections are not authorized.
    assert_eq!(at_tracker.refusal(&Request::Status).unwrap(), ErrorCode::Unauthorized);
    assert_eq!(at_a.refusal(&authorization).unwrap(), ErrorCode::Unauthorized);
    assert_eq!(at_a.refusal(&piece(0)).unwrap(), ErrorCode::Unauthorized);
    let output = get.wait(TIMEOUT).expect_status(4);
    assert!(output.stderr.contains("revoked"), "{}", output.stderr);
    assert!(!got.exists());
}

#[test]
fn admin_commands_work_on_stopped_tracker() {
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
    peer.wait_stderr("revoked");
}

#[test]
fn plaintext_endpoints_are_refused_in_invite_only_swarm() {
    let world = World::over(Wire::Secure);
    let peer = world.peer("peer", &[]);
    let authority = format!("swarm.authority=\"{}\"", "ab".repeat(32));
    let listen = "transport.listen=[\"tcp://127.0.0.1:7711\"]";
    let output = peer.run(["peer", "--set", &authority, "--set", listen]).expect_status(2);
    assert!(output.stderr.contains("invite-only") && output.stderr.contains("tcps://"), "{}", output.stderr);
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
    // Plaintext on a public address is refused in open swarms too. The error names both remedies.
    let public = "transport.listen=[\"zmq://0.0.0.0:7700\"]";
    let output = peer.run(["config", "check", "--set", public]).expect_status(2);
    assert!(
        output.stderr.contains("allow_plaintext = true") && output.stderr.contains("zmqs://"),
        "{}",
        output.stderr
    );
    peer.run(["config", "check", "--set", public, "--set", "transport.allow_plaintext=true"]).ok();
    let open = world.tracker("open");
    let output = open.run(["invite"]).expect_status(2);
    assert!(output.stderr.contains("swarm.admission"), "{}", output.stderr);
    let output = peer.run(["join", "enjambre1.nonsense"]).expect_status(2);
    assert!(output.stderr.contains("copy the whole line"), "{}", output.stderr);
}

#[test]
fn invite_only_catalogue_is_not_opened_by_missing_setting() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[INVITED]);
    // A peer without the setting would serve any client.
    let (mut member, _) = world.joined("member", &tracker.invite(&[]));
    let config = member.folder().join("enjambre.toml");
    let text = fs::read_to_string(&config).unwrap();
    let without: String =
        text.lines().filter(|line| !line.starts_with("authority")).map(|line| format!("{line}\n")).collect();
    assert_ne!(without.lines().count(), text.lines().count());
    fs::write(&config, without).unwrap();
    member.start();
    member.wait_stderr("swarm.authority is not set");
    tracker.stop(Signal::TERM, TIMEOUT).ok();
    tracker.set("swarm.admission=\"open\"");
    let output = tracker.run(["tracker"]).expect_status(2);
    assert!(
        output.stderr.contains("swarm.admission") && output.stderr.contains("invite-only"),
        "{}",
        output.stderr
    );
    let peer = world.peer("peer", &[]);
    let output = peer.run(["config", "check", "--set", INVITED]).expect_status(2);
    assert!(output.stderr.contains("enjambre join"), "{}", output.stderr);
}
