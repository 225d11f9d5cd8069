//! The shipped configuration files work unchanged, except that the test replaces the ports.

use std::fs;
use std::path::Path;

use enjambre_tests::binary::workspace;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{World, endpoint_in};
use enjambre_tests::process::Process;
use enjambre_tests::wait::TIMEOUT;

#[test]
fn shipped_config_files_run() {
    let world = World::default();
    for name in ["tracker.toml", "tracker-postgres.toml", "peer.toml"] {
        fs::copy(workspace().join("config").join(name), world.path(name)).unwrap();
    }
    let (file, hash) = world.file("film.bin", MIB);
    let folder = world.path("");
    let start = |args: &[&str]| Process::start(&folder, args);
    let any_port = "transport.listen=[\"zmq://127.0.0.1:0\"]";
    let config = |name: &str| Path::new(&folder).join(name).to_str().unwrap().to_owned();

    for name in ["tracker.toml", "tracker-postgres.toml", "peer.toml"] {
        start(&["config", "check", &config(name)]).wait(TIMEOUT).ok();
    }
    let mut tracker = start(&["tracker", "--config", &config("tracker.toml"), "--set", any_port]);
    let endpoint = tracker.wait_line(TIMEOUT, endpoint_in);
    let trackers = format!("peer.trackers=[\"{endpoint}\"]");
    let peer_config = config("peer.toml");
    let settings = ["--config", &peer_config, "--set", any_port, "--set", &trackers];
    let start_peer = |args: &[&str]| Process::start(&folder, args.iter().chain(&settings));
    let mut peer = start_peer(&["peer"]);
    peer.wait_line(TIMEOUT, endpoint_in);
    start_peer(&["publish", file.to_str().unwrap(), "--copy"]).wait(TIMEOUT).ok();
    fs::remove_file(&file).unwrap();
    let got = world.path("got.bin");
    start_peer(&["export", "film.bin", "-o", got.to_str().unwrap()]).wait(TIMEOUT).ok();
    assert_eq!(hash_of(&got), hash);
    // Relative paths are relative to the configuration file.
    assert!(world.path("data/tracker").is_dir() && world.path("data/peer").is_dir());
}
