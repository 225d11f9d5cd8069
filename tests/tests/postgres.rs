//! Trackers and peers with everything in one PostgreSQL server: catalogue, indexes, and the content of files.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::process::Command;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{World, endpoint_in};
use enjambre_tests::postgres::{PASSWORD, Server, Stop, USER_WITH_PASSWORD, fresh_schema};
use enjambre_tests::process::Process;
use enjambre_tests::wait::{LONG, wait_for};
use rustix::process::Signal;

#[test]
fn two_trackers_are_one_and_files_outlive_a_crash_of_the_server() {
    let Some(server) = Server::start("trackers and peers with PostgreSQL", "") else { return };
    let url = format!("storage.postgres.url={}", server.url());
    let with = |more: &'static str| ["storage.backend=postgres", url.as_str(), more];
    let world = World::default();
    let first = world.tracker_with("first", &with("tracker.store.enabled=true"));
    let second = world.tracker_with("second", &with("tracker.store.enabled=true"));
    let (file, hash) = world.file("film.bin", 9 * MIB);
    let a = world.running_peer_with("a", &[&first], &with("storage.postgres.schema=library_a"));
    let mut b = world.running_peer_with("b", &[&second], &with("storage.postgres.schema=library_b"));

    // Published and pinned at one tracker, found at the other.
    a.publish(&file, &["--store", "--pin"]);
    b.run(["get", "film.bin"]).ok();

    // Nobody else gets at the library of a peer.
    let intruder = world.peer_with("c", &[&first], &with("storage.postgres.schema=library_a"));
    let output = intruder.run(["library"]);
    assert_eq!(output.status, Some(1), "{output:?}");
    assert!(output.stderr.contains("library_a") && output.stderr.contains("in use"), "{output:?}");

    server.stop(Stop::Immediate);
    b.kill();
    server.start_again();
    b.start();
    wait_for("the trackers answer again", LONG, || b.run(["list"]).status == Some(0));
    let got = world.path("got.bin");
    b.run(["export", "film.bin", "-o", got.to_str().unwrap()]).ok();
    assert_eq!(hash_of(&got), hash);
    let kept =
        server.sql("SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE '%\\_store\\_%'");
    assert_eq!(kept.trim(), "4", "each tracker has a store of its own, of an index and of content");
}

#[test]
fn a_tracker_that_starts_while_the_server_is_away_waits_for_it_as_long_as_it_is_told_to() {
    let Some(server) = Server::start("a tracker that waits for PostgreSQL", "") else { return };
    let world = World::default();
    let url = format!("storage.postgres.url={}", server.url());
    let mut tracker = world.tracker_with("tracker", &["storage.backend=postgres", &url]);
    tracker.stop(Signal::TERM, LONG).ok();
    server.stop(Stop::Fast);

    let mut waiting = tracker.spawn(["tracker", "--set", "storage.postgres.start_timeout=60s"]);
    wait_for("it says what it waits for", LONG, || {
        waiting.stderr_text().contains("waiting for the database")
    });
    server.start_again();
    waiting.wait_line(LONG, endpoint_in);
    waiting.signal(Signal::TERM);
    let output = waiting.wait(LONG).ok();
    assert!(!output.stderr.contains("already exists"), "what is there already is no news: {}", output.stderr);

    server.stop(Stop::Fast);
    let output = tracker.run(["tracker", "--set", "storage.postgres.start_timeout=1s"]).expect_status(1);
    let port = server.port().to_string();
    assert!(output.stderr.contains(&port), "the error says which server: {}", output.stderr);
}

#[test]
fn a_password_is_nowhere_to_be_seen() {
    let world = World::default();
    let config = world.path("peer.toml");
    let url = "postgresql://u:hunter2@localhost/enjambre";
    std::fs::write(
        &config,
        format!("[storage]\nbackend = \"postgres\"\n[storage.postgres]\nurl = \"{url}\"\n"),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    for args in
        [&["config", "show", config][..], &["config", "check", config], &["library", "--config", config]]
    {
        let output = Process::start(&world.path(""), args).wait(LONG);
        assert_eq!(output.status, Some(2), "{output:?}");
        assert!(output.stderr.contains("password_env"), "{output:?}");
        assert!(!format!("{output:?}").contains("hunter2"), "{output:?}");
    }
}

#[test]
fn a_password_from_the_environment_is_nowhere_to_be_seen() {
    let Some(server) = Server::shared("a password of PostgreSQL from the environment") else { return };
    let world = World::default();
    let config = world.path("tracker.toml");
    let text = format!(
        "[tracker]\ndata_dir = \"data\"\n[transport]\nlisten = [\"tcp://127.0.0.1:0\"]\n[log]\nlevel = \"trace\"\n\
         [storage]\nbackend = \"postgres\"\n[storage.postgres]\nurl = \"{}\"\nschema = \"{}\"\n\
         password_env = \"DB_PASSWORD\"\n",
        server.url_for(USER_WITH_PASSWORD),
        fresh_schema()
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let run = |args: &[&str], password: &str| {
        let mut command = Command::new(binary::enjambre());
        command.args(args).env("DB_PASSWORD", password);
        Process::start_command(&world.path(""), command)
    };
    let start = ["tracker", "--config", config];
    for args in [["config", "show", config], ["config", "check", config]] {
        let output = run(&args, PASSWORD).wait(LONG).ok();
        assert!(!format!("{output:?}").contains(PASSWORD), "{output:?}");
    }
    let mut tracker = run(&start, PASSWORD);
    tracker.wait_line(LONG, endpoint_in);
    tracker.signal(Signal::TERM);
    let output = tracker.wait(LONG).ok();
    // That it was needed is seen below.
    assert!(!format!("{output:?}").contains(PASSWORD), "{output:?}");
    assert!(!server.log().contains(PASSWORD));

    let output = run(&start, "a wrong one").wait(LONG).expect_status(1);
    assert!(output.stderr.contains(USER_WITH_PASSWORD), "{output:?}");
    assert!(!format!("{output:?}").contains("a wrong one"), "{output:?}");
}

#[test]
fn a_check_in_a_scratch_leaves_nothing_behind() {
    let Some(server) = Server::shared("a check of PostgreSQL") else { return };
    let world = World::default();
    for kind in ["tracker", "peer"] {
        let config = world.path(format!("{kind}.toml"));
        let text = format!(
            "[{kind}]\ndata_dir = \"{kind}\"\n[storage]\nbackend = \"postgres\"\n[storage.postgres]\nurl = \"{}\"\n",
            server.url()
        );
        std::fs::write(&config, text).unwrap();
        let cases = ["--case", "no_update_is_lost", "--case", "a_kill_tears_no_batch"];
        let args = ["storage", "check", "--config", config.to_str().unwrap()].into_iter().chain(cases);
        Process::start(&world.path(""), args).wait(LONG).ok();
        assert!(!world.path(kind).exists(), "the data folder was not there before");
    }
    let left =
        server.sql("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'enjambre%'");
    assert_eq!(left.trim(), "");
}
