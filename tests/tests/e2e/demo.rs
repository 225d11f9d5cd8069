//! `enjambre demo` works without configuration and removes all its data.

use std::fs;
use std::process::Command;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::wait::TIMEOUT;

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
