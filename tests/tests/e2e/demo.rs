//! `enjambre demo` works without configuration and removes all its data.

use std::fs;
use std::process::Command;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::http::get;
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use rustix::process::Signal;

#[test]
fn demo_transfers_file_and_cleans_up() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 16 * MIB);
    let temporary = world.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(binary::enjambre());
    command.arg("demo").arg(&file).env("TMPDIR", &temporary).current_dir(world.path(""));
    let output = Process::start_command(&world.path(""), command).wait(2 * TIMEOUT).ok();
    assert!(output.stdout.contains(&hash[..8]), "the output contains no hash: {}", output.stdout);
    assert_eq!(hash_of(&file), hash);
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn demo_with_http_shows_the_transfer_and_runs_until_interrupted() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 8 * MIB);
    let content = fs::read(&file).unwrap();
    let mut command = Command::new(binary::enjambre());
    command.args(["demo", "--http"]).arg(&file).current_dir(world.path(""));
    let mut demo = Process::start_command(&world.path(""), command);
    let urls = demo.wait_line(TIMEOUT, |line| {
        let urls = line.split("http://").skip(1).filter_map(|url| url.split('/').next());
        (line.starts_with("open http://")).then(|| urls.map(str::to_owned).collect::<Vec<_>>())
    });
    let [peer, tracker] = urls.as_slice() else { panic!("{urls:?}") };
    for address in [peer, tracker] {
        // A peer listens before it is connected to the tracker.
        wait_for("a node that is ready", TIMEOUT, || get(address, "/readyz", &[]).status == 200);
    }
    demo.wait_line(TIMEOUT, |line| line.contains("killed peer 1").then_some(()));
    demo.wait_line(2 * TIMEOUT, |line| line.contains("Ctrl-C").then_some(()));
    assert!(get(peer, "/files/film.bin", &[]).body == content, "the gateway sends another file");
    demo.signal(Signal::INT);
    demo.wait(TIMEOUT).ok();
}
