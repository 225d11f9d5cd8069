//! Invite-only swarms whose trackers share a database, store replicas and change their storage backend.

use std::fs;
use std::process::Command;

use enjambre_core::protocol::message::{Reply, Request};
use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::outsider::Outsider;
use enjambre_tests::postgres::Server;
use enjambre_tests::process::Process;
use enjambre_tests::setup::{Setup, Wire};
use enjambre_tests::wait::{TIMEOUT, wait_for};
use rustix::process::Signal;

const INVITED: &str = "swarm.admission=\"invite\"";
const STORE: &str = "tracker.store.enabled=true";

#[test]
fn replica_stores_of_two_trackers_share_content() {
    let Some(server) = Server::start("two trackers of an invite-only swarm", "") else { return };
    let url = format!("storage.postgres.url={}", server.url());
    let settings = ["storage.backend=postgres", url.as_str(), INVITED, STORE];
    let world = World::over(Wire::Secure);
    let first = world.tracker_with("first", &settings);
    let second = world.tracker_with("second", &settings);
    let (file, hash) = world.file("film.bin", 9 * MIB);
    let (mut a, _) = world.joined("a", &first.invite(&[]));
    a.start();
    a.publish(&file, &["--pin"]);
    a.stop(Signal::TERM, TIMEOUT).ok();

    // The upload limit of b ensures that only the replica of the first tracker can be downloaded during the test.
    let (mut b, b_id) = world.joined("b", &second.invite(&[]));
    b.set("limits.upload=\"1KB/s\"");
    b.start();
    b.publish(&file, &["--pin"]);

    // A revocation at one tracker applies at both, including their replica stores.
    first.run(["revoke", &b_id]).ok();
    b.wait_stderr("revoked");
    let member = Outsider::new().unwrap();
    member.join(&second.invite(&[])).unwrap();
    let at_second = member.connect(second.endpoint()).unwrap();
    let have = Request::Have { id: hash.parse().unwrap(), wait: None };
    wait_for("the replica of the second tracker is complete", TIMEOUT, || {
        matches!(at_second.request(&have), Ok(Reply::Have { complete: true, .. }))
    });
    drop(first);
    let (c, _) = world.joined("c", &second.invite(&[]));
    let got = world.path("got.bin");
    c.get_to("film.bin", &got);
    assert_eq!(hash_of(&got), hash);
}

#[test]
fn invite_only_swarm_survives_storage_change() {
    let world = World::new(Setup { wire: Wire::Secure, ..Setup::default() });
    let mut tracker = world.tracker_with("tracker", &[INVITED, STORE]);
    let (mut a, a_id) = world.joined("a", &tracker.invite(&[]));
    let (b, _) = world.joined("b", &tracker.invite(&["--read-only"]));
    let (gone, gone_id) = world.joined("gone", &tracker.invite(&[]));
    let unused = tracker.invite(&["--uses", "2"]);
    let (file, hash) = world.file("film.bin", 3 * MIB + 5);
    a.start();
    a.publish(&file, &["--pin"]);
    a.kill();
    tracker.run(["reserve", "film.bin", &a_id]).ok();
    tracker.run(["revoke", &gone_id]).ok();
    let before = tracker.run(["peers", "--json"]).ok().json();
    let invitations = tracker.run(["invite", "--list", "--json"]).ok().json();
    tracker.stop(Signal::TERM, TIMEOUT).ok();

    let folder = tracker.folder().to_owned();
    let config = |backend: &str, data_dir: &str, admission: &str| {
        format!(
            "[tracker]\ndata_dir = \"{data_dir}\"\n[tracker.store]\nenabled = true\n[swarm]\nadmission = \"{admission}\"\n\
             [transport]\nlisten = [\"zmqs://127.0.0.1:0\"]\n[storage]\nbackend = \"{backend}\"\n"
        )
    };
    let copy = || {
        let mut command = Command::new(binary::enjambre());
        command.args(["storage", "copy", "--from", "from.toml", "--to", "to.toml", "--verify"]);
        command.current_dir(&folder);
        Process::start_command(&folder, command).wait(TIMEOUT).ok()
    };
    fs::write(folder.join("from.toml"), config("sqlite", "data", "invite")).unwrap();
    fs::write(folder.join("to.toml"), config("sled", "moved", "open")).unwrap();
    let output = copy();
    for text in ["authority was copied", "delete the old database", "swarm.admission", "to.toml"] {
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    fs::rename(folder.join("to.toml"), folder.join("from.toml")).unwrap();
    fs::write(folder.join("to.toml"), config("sqlite", "back", "invite")).unwrap();
    let output = copy();
    assert!(
        output.stderr.contains("authority") && !output.stderr.contains("swarm.admission"),
        "{}",
        output.stderr
    );

    for (backend, data_dir) in [("sled", "moved"), ("sqlite", "back")] {
        tracker.set(&format!("storage.backend=\"{backend}\""));
        tracker.set(&format!("tracker.data_dir=\"{data_dir}\""));
        tracker.start();
        let ids = |members: &[serde_json::Value]| {
            let of = |member: &serde_json::Value| {
                [&member["peer"], &member["rights"], &member["revoked_ms"]].map(Clone::clone)
            };
            members.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(ids(&tracker.run(["peers", "--json"]).ok().json()), ids(&before));
        assert_eq!(tracker.run(["invite", "--list", "--json"]).ok().json(), invitations);
        b.run(["list"]).ok();
        assert!(gone.run(["list"]).expect_status(1).stderr.contains("revoked"));
        let (c, _) = world.joined(&format!("c-{backend}"), &unused);
        // The only provider is the replica store of the tracker.
        let got = world.path(format!("got-{backend}.bin"));
        c.get_to("film.bin", &got);
        assert_eq!(hash_of(&got), hash);
        let output = c.run(["publish", file.to_str().unwrap()]).expect_status(1);
        assert!(output.stderr.contains("reserved"), "{}", output.stderr);
        tracker.stop(Signal::TERM, TIMEOUT).ok();
    }
}
