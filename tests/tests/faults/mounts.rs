//! Directories with several paths, other mounts of the daemon, and a file system with reflinks. The tests mount file systems,
//! see `enjambre_tests::mount`.

use std::fs;
use std::path::Path;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::mount::{Mount, in_namespace};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::wait::TIMEOUT;

#[test]
fn data_directory_at_another_path_is_in_use() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let running = world.running_peer("a", &[&tracker]);
    let data = running.folder().join("data");
    let Some(other) = Mount::of_directory("a data directory with two paths", &data) else { return };
    let same = world.peer_with("b", &[&tracker], &[&format!("peer.data_dir={:?}", other.path())]);
    let output = same.run(["peer"]).expect_status(1);
    assert!(output.stderr.contains("in use") || output.stderr.contains("already runs"), "{}", output.stderr);
}

#[test]
fn interrupted_download_continues_at_another_path_of_its_directory() {
    let world = World::default();
    let size = 40 * MIB;
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let dir = world.path("dir");
    fs::create_dir(&dir).unwrap();
    let Some(other) = Mount::of_directory("a download to a directory with two paths", &dir) else { return };
    let b = world.running_peer_with("b", &[&tracker], &["limits.download=\"16MB/s\""]);
    let get = |dir: &Path| ["get", "film.bin", "--json", "-o", dir.to_str().unwrap()].map(str::to_owned);
    let mut interrupted = b.spawn(get(&dir));
    interrupted.wait_event(|event| (event["done"].as_u64() >= Some(16 * MIB)).then_some(()));
    interrupted.kill();
    b.run(get(other.path())).ok();
    assert_eq!(hash_of(&dir.join("film.bin")), hash);
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["film.bin"]);
    let sent = a.sent();
    assert!(sent <= size + 10 * MIB, "{sent} bytes were sent for {size}");
}

#[test]
fn file_that_only_the_daemon_sees_fails_get() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", MIB);
    let tracker = world.tracker("tracker");
    let peer = world.running_peer("peer", &[&tracker]);
    peer.publish(&file, &[]);
    fs::create_dir(world.path("dir")).unwrap();
    let Some(mut get) = in_namespace("a command with other mounts", "mount -t tmpfs none dir") else {
        return;
    };
    get.arg(binary::enjambre()).args(["get", "film.bin", "-o", "dir/", "--config"]);
    get.arg(peer.folder().join("enjambre.toml")).current_dir(world.path(""));
    let output = Process::start_command(&world.path(""), get).wait(TIMEOUT).expect_status(1);
    assert!(output.stderr.contains("other mounts"), "{}", output.stderr);
    assert_eq!(output.stdout, "");
    // The daemon has written it, and a command with the same mounts sees it.
    assert_eq!(hash_of(&world.path("dir/film.bin")), hash);
    peer.run(["get", "film.bin", "-o", world.path("dir/film.bin").to_str().unwrap()]).ok();
}

#[test]
fn exported_file_shares_its_blocks_with_the_library() {
    const SIZE: u64 = 64 * MIB;
    let world = World::new("sqlite+files".parse().unwrap());
    let image = world.path("disk");
    let Some(disk) = Mount::with_reflinks("an export with reflinks", &image, 512 * MIB) else { return };
    let tracker = world.tracker("tracker");
    let data_dir = format!("peer.data_dir={:?}", disk.path().join("data"));
    let peer = world.running_peer_with("peer", &[&tracker], &[&data_dir]);
    let (source, hash) = world.file("film.bin", SIZE);
    let linked = disk.path().join("linked.bin");
    fs::copy(&source, &linked).unwrap();
    peer.publish(&source, &["--copy"]);
    for (name, has_content) in [("film.bin", "the library"), ("linked.bin", "a linked file")] {
        if name == "linked.bin" {
            // The content in the library has precedence.
            peer.run(["remove", "film.bin"]).ok();
            peer.publish(&linked, &[]);
        }
        disk.sync();
        let free = disk.free();
        let copy = disk.path().join(format!("copy-of-{name}"));
        peer.run([Path::new("export"), Path::new(name), Path::new("-o"), &copy]).ok();
        disk.sync();
        let used = free.saturating_sub(disk.free());
        assert!(used < SIZE / 4, "an export from {has_content} takes {used} bytes");
        assert_eq!(hash_of(&copy), hash);
    }
}
