//! A disk that is full: downloads wait and go on by themselves, with what they have; a tracker says so and goes on. Each
//! test has a small file system of its own, which takes root; see `enjambre_tests::mount`.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::path::Path;

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::mount::Mount;
use enjambre_tests::node::{Peer, Setup, Tracker, World};
use enjambre_tests::process::Process;
use enjambre_tests::wait::{LONG, wait_for, wait_until};

/// The size of the file that is fetched.
const FILE: u64 = 40 * MIB;
/// Room for it in every kind of store: sled writes it several times.
const DISK: u64 = 320 * MIB;
const NO_ROOM: &str = "no room left on the disk";

/// A peer that has the file, and one that is to get it onto a small disk.
struct Scene {
    disk: Mount,
    world: World,
    hash: String,
    file: std::path::PathBuf,
}

impl Scene {
    fn new(test: &str, setup: Setup) -> Option<Self> {
        let disk = Mount::in_memory(test, DISK)?;
        let world = World::new(setup);
        let (file, hash) = world.file("film.bin", FILE);
        Some(Self { disk, world, hash, file })
    }

    /// A peer whose data is on the small disk. What it says is not.
    fn small_peer(&self, tracker: &Tracker) -> Peer {
        let data = format!("peer.data_dir={:?}", self.disk.path().join("data"));
        self.world.running_peer_with("peer", &[tracker], &[&data])
    }
}

/// Waits until the command has said that the disk is full, and only once.
#[track_caller]
fn wait_until_it_waits(get: &mut Process) {
    wait_for("word that the disk is full", LONG, || get.stderr_text().contains(NO_ROOM));
    assert!(get.is_running(), "it waits\n{}", get.stderr_text());
    assert_eq!(get.stderr_text().matches(NO_ROOM).count(), 1, "{}", get.stderr_text());
}

fn done(get: &mut Process) -> u64 {
    get.wait_event(|event| event["done"].as_u64())
}

fn without_room_from_the_start(test: &str, setup: Setup) {
    let Some(scene) = Scene::new(test, setup) else { return };
    let tracker = scene.world.tracker("tracker");
    let source = scene.world.running_peer("source", &[&tracker]);
    source.publish(&scene.file, &[]);
    let peer = scene.small_peer(&tracker);
    let ballast = scene.disk.fill(2 * MIB);
    let mut get = peer.spawn(["get", "film.bin", "--json"]);
    wait_until_it_waits(&mut get);
    // It can be asked meanwhile, and what others want of it goes on.
    peer.run(["status"]).ok();
    drop(ballast);
    get.wait(LONG).ok();
    check(&scene, &peer);
}

fn room_runs_out_on_the_way(test: &str, setup: Setup) {
    let Some(scene) = Scene::new(test, setup) else { return };
    let tracker = scene.world.tracker("tracker");
    let mut source = scene.world.running_peer_with("source", &[&tracker], &["limits.upload=\"16MB/s\""]);
    source.publish(&scene.file, &[]);
    let mut peer = scene.small_peer(&tracker);
    let mut get = peer.spawn(["get", "film.bin", "--json"]);
    get.wait_event(|event| (event["done"].as_u64() >= Some(4 * MIB)).then_some(()));
    let ballast = scene.disk.fill(MIB);
    if setup.content == "files" {
        // The room for all of it was taken when the download began, and the index may have what it needs.
        wait_for("the end, or word of a full disk", LONG, || {
            !get.is_running() || get.stderr_text().contains(NO_ROOM)
        });
    } else {
        wait_until_it_waits(&mut get);
    }
    // What it has survives, whatever happens now.
    drop(get);
    peer.kill();
    let sent = source.sent();
    drop(ballast);
    source.set("limits.upload=unlimited");
    peer.start();
    let mut get = peer.spawn(["get", "film.bin", "--json"]);
    let kept = done(&mut get);
    get.wait(LONG).ok();
    assert!(sent - kept.min(sent) <= 16 * MIB, "of {sent} bytes that came it kept {kept}");
    check(&scene, &peer);
}

/// What arrived is the file, in the library and when it is fetched to a path.
fn check(scene: &Scene, peer: &Peer) {
    peer.run(["verify"]).ok();
    let path = scene.world.path("exported");
    peer.run([Path::new("export"), Path::new("film.bin"), Path::new("-o"), &path]).ok();
    assert_eq!(hash_of(&path), scene.hash);
}

macro_rules! for_each_setup {
    ($($name:ident: $setup:literal;)*) => {$(
        mod $name {
            #[test]
            fn a_download_begins_without_room_and_goes_on_by_itself() {
                super::without_room_from_the_start(stringify!($name), $setup.parse().unwrap());
            }

            #[test]
            fn a_download_that_runs_out_of_room_keeps_what_it_has() {
                super::room_runs_out_on_the_way(stringify!($name), $setup.parse().unwrap());
            }
        }
    )*};
}

for_each_setup! {
    sqlite: "sqlite";
    sqlite_files: "sqlite+files";
    sled: "sled";
    sled_files: "sled+files";
}

#[test]
fn a_download_to_a_path_waits_for_room_there_and_goes_on_by_itself() {
    let Some(disk) = Mount::in_memory("a full disk at the path of get -o", DISK) else { return };
    let world = World::default();
    let (file, hash) = world.file("film.bin", FILE);
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &[]);
    let daemon = world.running_peer("daemon", &[&tracker]);
    let alone = world.peer("alone", &[&tracker]);
    let has_it = world.running_peer("has-it", &[&tracker]);
    has_it.run(["get", "film.bin"]).ok();
    for (name, peer) in [("daemon", &daemon), ("alone", &alone), ("has-it", &has_it)] {
        let ballast = disk.fill(2 * MIB);
        let path = disk.path().join(name);
        let path_text = path.display().to_string();
        let mut get = peer.spawn(["get", "film.bin", "--json", "-o", &path_text]);
        wait_until_it_waits(&mut get);
        assert!(!path.exists(), "{name}");
        drop(ballast);
        get.wait(LONG).ok();
        assert_eq!(hash_of(&path), hash, "{name}");
    }
}

#[test]
fn a_folder_waits_for_room_and_goes_on_by_itself() {
    let Some(disk) = Mount::in_memory("a full disk under a folder", DISK) else { return };
    let world = World::default();
    let folder = world.path("folder");
    enjambre_tests::content::write_tree(&folder, 1);
    enjambre_tests::content::write_file(&folder.join("large"), FILE, 5);
    let tree = enjambre_tests::content::read_tree(&folder);
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&folder, &[]);
    let peer = world.peer("peer", &[&tracker]);
    let ballast = disk.fill(16 * 1024);
    let path = disk.path().join("copy");
    let path_text = path.display().to_string();
    let mut get = peer.spawn(["get", "folder", "--json", "-o", &path_text]);
    wait_until_it_waits(&mut get);
    drop(ballast);
    get.wait(LONG).ok();
    assert!(enjambre_tests::content::read_tree(&path) == tree, "the folder is another");
}

fn a_full_tracker_says_so_and_goes_on(test: &str, setup: Setup) {
    let Some(disk) = Mount::in_memory(test, DISK) else { return };
    let world = World::default();
    let other_world = World::new(setup);
    let data = format!("tracker.data_dir={:?}", disk.path().join("data"));
    let mut tracker = other_world.tracker_with("tracker", &[&data]);
    let peer = world.running_peer("peer", &[&tracker]);
    let (before, _) = world.file("before.bin", 1000);
    peer.publish(&before, &[]);
    let ballast = disk.fill(0);
    // A database has some room of its own; what is refused is refused with one clear line.
    let refused = wait_until("a refusal", LONG * 2, || {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (file, _) = world.file(&format!("file-{number}.bin"), 2000 + u64::from(number));
        let output = peer.spawn([Path::new("publish"), &file]).wait(LONG);
        (output.status != Some(0)).then_some((format!("file-{number}.bin"), output))
    });
    let (name, output) = refused;
    assert_eq!(output.status, Some(1), "{output:?}");
    assert!(output.stderr.contains("full"), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    // What it has can be found while it is full.
    assert!(peer.listed("before.bin").is_some());
    drop(ballast);
    // It goes on by itself, and so does the peer with what was refused.
    peer.wait_providers(&name, 1, LONG);
    tracker.kill();
    tracker.start();
    peer.wait_providers(&name, 1, LONG);
    assert!(peer.listed("before.bin").is_some());
}

#[test]
fn a_tracker_on_sqlite_says_that_its_disk_is_full_and_goes_on() {
    a_full_tracker_says_so_and_goes_on("a full disk under a tracker on SQLite", Setup::default());
}

#[test]
fn a_tracker_on_sled_says_that_its_disk_is_full_and_goes_on() {
    a_full_tracker_says_so_and_goes_on("a full disk under a tracker on sled", "sled".parse().unwrap());
}
