//! A program with a custom storage backend: `examples/redb`.

use std::fs;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::TIMEOUT;

fn with_redb(test: impl FnOnce(World)) {
    binary::with_program("enjambre-redb", || test(World::new(Setup { backend: "redb", ..Setup::default() })));
}

#[test]
fn custom_backend_survives_kills() {
    with_redb(survive_kills);
}

fn survive_kills(world: World) {
    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    let mut b = world.running_peer("b", &[&tracker]);
    let (file, hash) = world.file("film.bin", 5 * MIB + 1);
    a.publish(&file, &["--copy"]);
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
    // The only copy of the content is in the database of b.
    let c = world.running_peer("c", &[&tracker]);
    let got = world.path("got.bin");
    c.get_to("film.bin", &got);
    assert_eq!(hash_of(&got), hash);
    b.run(["verify"]).ok();
}

#[test]
fn custom_program_has_all_commands_under_its_name() {
    with_redb(run_commands);
}

fn run_commands(world: World) {
    let run = |args: &[&str]| Process::start(&world.path(""), args).wait(TIMEOUT);
    let version = run(&["--version"]).ok().stdout;
    assert!(version.starts_with("enjambre-redb 0.1.0 (enjambre "), "{version}");
    let help = run(&["--help"]).ok().stdout;
    assert!(help.contains("Usage: enjambre-redb ") && help.contains(", redb, "), "{help}");
    for name in ["tracker.toml", "peer.toml"] {
        let file = binary::workspace().join("examples/redb/config").join(name);
        run(&["config", "check", file.to_str().unwrap()]).ok();
    }
    let data_dir = format!("peer.data_dir={}", world.path("data").display());
    let check = [
        "storage",
        "check",
        "--case",
        "batch_is_applied_only_if_conditions_hold",
        "--set",
        "storage.backend=redb",
    ];
    run(&[&check[..], &["--set", &data_dir]].concat()).ok();
    // The crash check starts this program as its crash writer and kills it.
    let kills = [
        "storage",
        "check",
        "--crash",
        "--case",
        "batches_are_atomic_after_kill",
        "--set",
        "storage.backend=redb",
    ];
    let output = run(&[&kills[..], &["--set", &data_dir]].concat()).ok();
    assert!(output.stdout.contains("2 passed, 0 failed"), "{}", output.stdout);
    let refused = run(&["library", "--set", "storage.backend=redb", "--set", "storage.redb.cache=1"]);
    assert!(refused.expect_status(2).stderr.contains("storage.redb.cache"));
}
