//! A program of somebody else, with a storage backend of its own: the example `examples/redb`.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Setup, World};
use enjambre_tests::process::Process;
use enjambre_tests::wait::LONG;

/// From now on the tests of this process are about the example.
fn world() -> World {
    binary::test_instead("enjambre-redb", "enjambre-redb");
    World::new(Setup { backend: "redb", ..Setup::default() })
}

#[test]
fn a_swarm_on_a_backend_of_its_own_outlives_kills() {
    let world = world();
    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    let mut b = world.running_peer("b", &[&tracker]);
    let (file, hash) = world.file("film.bin", 5 * MIB + 1);
    a.publish(&file, &["--store"]);
    fs::remove_file(&file).unwrap();
    b.run(["get", "film.bin"]).ok();
    for name in ["tracker/data/catalogue.redb", "b/data/library.redb", "b/data/library-content.redb"] {
        assert!(world.path(name).is_file(), "{name}");
    }

    tracker.kill();
    a.kill();
    b.kill();
    tracker.start();
    b.start();
    // All that is left of the file is in b's database, and the tracker knows of it from its own.
    let c = world.running_peer("c", &[&tracker]);
    let got = world.path("got.bin");
    c.get_to("film.bin", &got);
    assert_eq!(hash_of(&got), hash);
    b.run(["verify"]).ok();
}

#[test]
fn it_has_the_whole_command_line_under_its_own_name() {
    let world = world();
    let run = |args: &[&str]| Process::start(&world.path(""), args).wait(LONG);
    let version = run(&["--version"]).ok().stdout;
    assert!(version.starts_with("enjambre-redb 0.1.0 (enjambre "), "{version}");
    let help = run(&["--help"]).ok().stdout;
    assert!(help.contains("Usage: enjambre-redb ") && help.contains(", redb, "), "{help}");
    for name in ["tracker.toml", "peer.toml"] {
        let file = binary::workspace().join("examples/redb/config").join(name);
        run(&["config", "check", file.to_str().unwrap()]).ok();
    }
    let data_dir = format!("peer.data_dir={}", world.path("data").display());
    let check = ["storage", "check", "--case", "conditions_decide", "--set", "storage.backend=redb"];
    run(&[&check[..], &["--set", &data_dir]].concat()).ok();
    // Processes that commit are started as this program, and killed.
    let kills =
        ["storage", "check", "--crash", "--case", "a_kill_tears_no_batch", "--set", "storage.backend=redb"];
    let output = run(&[&kills[..], &["--set", &data_dir]].concat()).ok();
    assert!(output.stdout.contains("2 passed, 0 failed"), "{}", output.stdout);
    let refused = run(&["library", "--set", "storage.backend=redb", "--set", "storage.redb.cache=1"]);
    assert!(refused.expect_status(2).stderr.contains("storage.redb.cache"));
}
