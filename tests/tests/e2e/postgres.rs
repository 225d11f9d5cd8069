//! Trackers and peers that store their catalogues, libraries and content in PostgreSQL.

use std::process::Command;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{World, endpoint_in};
use enjambre_tests::postgres::{PASSWORD, Server, Stop, USER_WITH_PASSWORD, fresh_schema};
use enjambre_tests::process::Process;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use rustix::process::Signal;

#[test]
fn catalogue_on_server_survives_server_crash() {
    let Some(server) = Server::start("trackers and peers with PostgreSQL", "") else { return };
    let url = format!("storage.postgres.url={}", server.url());
    let settings = |more: &'static str| ["storage.backend=postgres", url.as_str(), more];
    let world = World::default();
    let first = world.tracker_with("first", &settings("tracker.store.enabled=true"));
    let second = world.tracker_with("second", &settings("tracker.store.enabled=true"));
    let (file, hash) = world.file("film.bin", 9 * MIB);
    let a = world.running_peer_with("a", &[&first], &settings("storage.postgres.schema=library_a"));
    let mut b = world.running_peer_with("b", &[&second], &settings("storage.postgres.schema=library_b"));

    // Published and pinned at one tracker, found at the other.
    a.publish(&file, &["--copy", "--pin"]);
    b.run(["get", "film.bin"]).ok();

    // A second peer cannot open the library of a running peer.
    let second_peer = world.peer_with("c", &[&first], &settings("storage.postgres.schema=library_a"));
    let output = second_peer.run(["get", "film.bin"]);
    assert_eq!(output.status, Some(1), "{output:?}");
    assert!(output.stderr.contains("library_a") && output.stderr.contains("in use"), "{output:?}");

    server.stop(Stop::Immediate);
    b.kill();
    server.start_again();
    b.start();
    wait_for("the trackers recover", TIMEOUT, || b.run(["list"]).status == Some(0));
    let got = world.path("got.bin");
    b.run(["export", "film.bin", "-o", got.to_str().unwrap()]).ok();
    assert_eq!(hash_of(&got), hash);
    let count =
        server.sql("SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE '%\\_store\\_%'");
    assert_eq!(count.trim(), "4", "each tracker has schemas for the index and the content of its store");
}

#[test]
fn tracker_waits_for_server_until_start_timeout() {
    let Some(server) = Server::start("a tracker that waits for PostgreSQL", "") else { return };
    let world = World::default();
    let url = format!("storage.postgres.url={}", server.url());
    let mut tracker = world.tracker_with("tracker", &["storage.backend=postgres", &url]);
    tracker.stop(Signal::TERM, TIMEOUT).ok();
    server.stop(Stop::Fast);

    let mut waiting = tracker.spawn(["tracker", "--set", "storage.postgres.start_timeout=60s"]);
    wait_for("the log message about the wait", TIMEOUT, || {
        waiting.stderr_text().contains("waiting for the database")
    });
    server.start_again();
    waiting.wait_line(TIMEOUT, endpoint_in);
    waiting.signal(Signal::TERM);
    let output = waiting.wait(TIMEOUT).ok();
    assert!(
        !output.stderr.contains("already exists"),
        "a notice about an existing object is logged: {}",
        output.stderr
    );

    server.stop(Stop::Fast);
    let output = tracker.run(["tracker", "--set", "storage.postgres.start_timeout=1s"]).expect_status(1);
    let port = server.port().to_string();
    assert!(output.stderr.contains(&port), "the error does not name the server: {}", output.stderr);
}

#[test]
fn database_failures_are_logged_with_their_causes() {
    let Some(server) = Server::start("the log of a tracker with PostgreSQL", "") else { return };
    let world = World::default();
    let url = format!("storage.postgres.url={}", server.url());
    let mut tracker = world.tracker_with("tracker", &["storage.backend=postgres", &url]);
    let peer = world.running_peer("peer", &[&tracker]);
    let (file, _) = world.file("film.bin", MIB);
    peer.publish(&file, &[]);
    let mut wait_logged = |cause: &str| {
        wait_for(cause, TIMEOUT, || {
            peer.run(["list"]);
            let log = tracker.stderr_text();
            log.lines().any(|line| line.contains("storage call failed") && line.contains(cause))
        });
    };
    server.stop(Stop::Fast);
    wait_logged("refused");
    server.start_again();
    server.sql("DROP SCHEMA enjambre_catalogue CASCADE");
    wait_logged("does not exist");
}

#[test]
fn password_from_file_is_never_shown() {
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
        let output = Process::start(&world.path(""), args).wait(TIMEOUT);
        assert_eq!(output.status, Some(2), "{output:?}");
        assert!(output.stderr.contains("password_env"), "{output:?}");
        assert!(!format!("{output:?}").contains("hunter2"), "{output:?}");
    }
}

#[test]
fn password_from_environment_is_never_shown() {
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
        let output = run(&args, PASSWORD).wait(TIMEOUT).ok();
        assert!(!format!("{output:?}").contains(PASSWORD), "{output:?}");
    }
    let mut tracker = run(&start, PASSWORD);
    tracker.wait_line(TIMEOUT, endpoint_in);
    tracker.signal(Signal::TERM);
    let output = tracker.wait(TIMEOUT).ok();
    // The attempt with a wrong password below proves that the server requires it.
    assert!(!format!("{output:?}").contains(PASSWORD), "{output:?}");
    assert!(!server.log().contains(PASSWORD));

    let output = run(&start, "a wrong one").wait(TIMEOUT).expect_status(1);
    assert!(output.stderr.contains(USER_WITH_PASSWORD), "{output:?}");
    assert!(!format!("{output:?}").contains("a wrong one"), "{output:?}");
}

#[test]
fn storage_check_on_server_leaves_no_schema() {
    let Some(server) = Server::shared("a check of PostgreSQL") else { return };
    let world = World::default();
    for kind in ["tracker", "peer"] {
        let config = world.path(format!("{kind}.toml"));
        let text = format!(
            "[{kind}]\ndata_dir = \"{kind}\"\n[storage]\nbackend = \"postgres\"\n[storage.postgres]\nurl = \"{}\"\n",
            server.url()
        );
        std::fs::write(&config, text).unwrap();
        let cases = ["--case", "concurrent_updates_are_not_lost", "--case", "batches_are_atomic_after_kill"];
        let args = ["storage", "check", "--config", config.to_str().unwrap()].into_iter().chain(cases);
        Process::start(&world.path(""), args).wait(TIMEOUT).ok();
        assert!(!world.path(kind).exists(), "the check has left a data directory");
    }
    let left =
        server.sql("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'enjambre%'");
    assert_eq!(left.trim(), "");
}
