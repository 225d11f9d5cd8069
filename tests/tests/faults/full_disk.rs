//! Full disks: downloads wait, keep their pieces and continue automatically; a tracker returns errors and recovers. Each test
//! mounts a small file system, which requires root; see `enjambre_tests::mount`.

use std::path::Path;
use std::sync::Arc;

use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::{Dialer, FileId, FileKind, KeyPair, Publication};
use enjambre_swarm::tracker_client::client::TrackerClient;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::mount::Mount;
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process::Process;
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::{TIMEOUT, wait_for, wait_until};
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;

/// The size of the downloaded file.
const FILE: u64 = 40 * MIB;
/// Sufficient for every backend; sled writes the content several times.
const DISK: u64 = 320 * MIB;
const DISK_FULL: &str = "disk full:";

/// A file to download, and a small disk for the download.
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

    /// Starts a peer with its data directory, but not its log, on the small disk.
    fn small_peer(&self, tracker: &Tracker) -> Peer {
        let data = format!("peer.data_dir={:?}", self.disk.path().join("data"));
        self.world.running_peer_with("peer", &[tracker], &[&data])
    }
}

/// Waits until the command reports the full disk, and checks that it does so only once.
#[track_caller]
fn wait_disk_full(get: &mut Process) {
    wait_for("the report of the full disk", TIMEOUT, || get.stderr_text().contains(DISK_FULL));
    assert!(get.is_running(), "the command has exited\n{}", get.stderr_text());
    assert_eq!(get.stderr_text().matches(DISK_FULL).count(), 1, "{}", get.stderr_text());
}

fn check_wait(test: &str, setup: Setup) {
    let Some(scene) = Scene::new(test, setup) else { return };
    let tracker = scene.world.tracker("tracker");
    let source = scene.world.running_peer("source", &[&tracker]);
    source.publish(&scene.file, &[]);
    let peer = scene.small_peer(&tracker);
    let ballast = scene.disk.fill(2 * MIB);
    let mut get = peer.spawn(["get", "film.bin", "--json"]);
    wait_disk_full(&mut get);
    // The daemon still answers requests.
    peer.run(["status"]).ok();
    drop(ballast);
    get.wait(TIMEOUT).ok();
    check(&scene, &peer);
}

fn check_kept_pieces(test: &str, setup: Setup) {
    let Some(scene) = Scene::new(test, setup) else { return };
    let tracker = scene.world.tracker("tracker");
    let mut source = scene.world.running_peer_with("source", &[&tracker], &["limits.upload=\"16MB/s\""]);
    source.publish(&scene.file, &[]);
    let mut peer = scene.small_peer(&tracker);
    let mut get = peer.spawn(["get", "film.bin", "--json"]);
    get.wait_event(|event| (event["done"].as_u64() >= Some(4 * MIB)).then_some(()));
    let ballast = scene.disk.fill(MIB);
    if setup.content == "files" {
        // The space for the file was allocated at the start of the download, so the disk may be large enough.
        wait_for("the exit or the report of the full disk", TIMEOUT, || {
            !get.is_running() || get.stderr_text().contains(DISK_FULL)
        });
    } else {
        wait_disk_full(&mut get);
    }
    // The pieces survive a kill.
    drop(get);
    peer.kill();
    let sent = source.sent();
    drop(ballast);
    source.set("limits.upload=unlimited");
    peer.start();
    let mut get = peer.spawn(["get", "film.bin", "--json"]);
    let kept = get.wait_event(|event| event["done"].as_u64());
    get.wait(TIMEOUT).ok();
    assert!(sent - kept.min(sent) <= 16 * MIB, "{kept} of {sent} received bytes were kept");
    check(&scene, &peer);
}

/// Checks the file in the library and its export.
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
            fn download_waits_for_free_space() {
                super::check_wait(stringify!($name), $setup.parse().unwrap());
            }

            #[test]
            fn download_on_full_disk_keeps_pieces() {
                super::check_kept_pieces(stringify!($name), $setup.parse().unwrap());
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
fn download_to_path_waits_for_free_space() {
    let Some(disk) = Mount::in_memory("a full disk at the output of get -o", DISK) else { return };
    let world = World::default();
    let (file, hash) = world.file("film.bin", FILE);
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &[]);
    let daemon = world.running_peer("daemon", &[&tracker]);
    let alone = world.peer("alone", &[&tracker]);
    let complete = world.running_peer("complete", &[&tracker]);
    complete.run(["get", "film.bin"]).ok();
    for (name, peer) in [("daemon", &daemon), ("alone", &alone), ("complete", &complete)] {
        let ballast = disk.fill(2 * MIB);
        let path = disk.path().join(name);
        let path_text = path.display().to_string();
        let mut get = peer.spawn(["get", "film.bin", "--json", "-o", &path_text]);
        wait_disk_full(&mut get);
        assert!(!path.exists(), "{name}");
        drop(ballast);
        get.wait(TIMEOUT).ok();
        assert_eq!(hash_of(&path), hash, "{name}");
    }
}

/// Downloads of plain files leave this number of bytes free.
const RESERVE: u64 = 8 * MIB;

#[test]
fn download_to_path_leaves_reserve_free() {
    let Some(disk) = Mount::in_memory("the reserve at the output of get -o", DISK) else { return };
    let world = World::default();
    let (file, _) = world.file("film.bin", FILE);
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &[]);
    let incomplete = world.peer("incomplete", &[&tracker]);
    let complete = world.running_peer("complete", &[&tracker]);
    complete.run(["get", "film.bin"]).ok();
    for (name, peer) in [("incomplete", &incomplete), ("complete", &complete)] {
        let _ballast = disk.fill(FILE + RESERVE / 2);
        let path = disk.path().join(name).display().to_string();
        let mut get = peer.spawn(["get", "film.bin", "--json", "-o", &path]);
        wait_disk_full(&mut get);
        assert!(disk.free() >= RESERVE, "only {} bytes are left", disk.free());
    }
}

#[test]
fn download_into_files_leaves_reserve_free() {
    let setup = "sqlite+files".parse().unwrap();
    let Some(scene) = Scene::new("the reserve of content in files", setup) else { return };
    let tracker = scene.world.tracker("tracker");
    let source = scene.world.running_peer("source", &[&tracker]);
    source.publish(&scene.file, &[]);
    let peer = scene.small_peer(&tracker);
    let _ballast = scene.disk.fill(FILE + RESERVE / 2);
    let mut get = peer.spawn(["get", "film.bin", "--json"]);
    wait_disk_full(&mut get);
    // The index needs some bytes for the received pieces.
    assert!(scene.disk.free() >= RESERVE - MIB, "only {} bytes are left", scene.disk.free());
}

#[test]
fn removed_content_makes_space_for_waiting_download() {
    let Some(disk) = Mount::in_memory("space of removed content on a full disk", DISK) else { return };
    let world = World::default();
    let (old, _) = world.file("old.bin", FILE);
    let (new, hash) = world.file("new.bin", FILE / 2);
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&old, &[]);
    source.publish(&new, &[]);
    let data = format!("peer.data_dir={:?}", disk.path().join("data"));
    let peer = world.running_peer_with("peer", &[&tracker], &[&data]);
    peer.run(["get", "old.bin"]).ok();
    let _ballast = disk.fill(4 * MIB);
    let mut get = peer.spawn(["get", "new.bin", "--json"]);
    wait_disk_full(&mut get);
    assert!(get.stderr_text().contains(&disk.path().display().to_string()), "{}", get.stderr_text());
    peer.run(["remove", "old.bin"]).ok();
    get.wait(TIMEOUT).ok();
    let path = world.path("exported");
    peer.run([Path::new("export"), Path::new("new.bin"), Path::new("-o"), &path]).ok();
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn directory_download_waits_for_free_space() {
    let Some(disk) = Mount::in_memory("a full disk at the output directory", DISK) else { return };
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
    wait_disk_full(&mut get);
    drop(ballast);
    get.wait(TIMEOUT).ok();
    assert!(enjambre_tests::content::read_tree(&path) == tree, "the downloaded directory differs");
}

fn check_tracker_recovery(test: &str, setup: Setup) {
    let Some(disk) = Mount::in_memory(test, DISK) else { return };
    let world = World::default();
    let tracker_world = World::new(setup);
    let data = format!("tracker.data_dir={:?}", disk.path().join("data"));
    // The lease determines when the peer repeats a refused publication.
    let mut tracker = tracker_world.tracker_with("tracker", &[&data, "tracker.lease=3s"]);
    let peer = world.running_peer("peer", &[&tracker]);
    let (before, _) = world.file("before.bin", 1000);
    peer.publish(&before, &[]);
    let ballast = disk.fill(0);
    // The database has some free space, so the first publications may succeed. A refusal is one clear line.
    let (name, output) = wait_until("a refused publication", TIMEOUT * 2, || {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (file, _) = world.file(&format!("file-{number}.bin"), 2000 + u64::from(number));
        let output = peer.spawn([Path::new("publish"), &file]).wait(TIMEOUT);
        (output.status != Some(0)).then_some((format!("file-{number}.bin"), output))
    });
    assert_eq!(output.status, Some(1), "{output:?}");
    assert!(output.stderr.contains("full"), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    tracker.wait_stderr("storage call failed");
    // Lookups succeed while the disk is full.
    assert!(peer.listed("before.bin").is_some());
    drop(ballast);
    // The tracker recovers automatically, and the peer publishes the refused file again.
    peer.wait_providers(&name, 1, TIMEOUT);
    tracker.kill();
    tracker.start();
    peer.wait_providers(&name, 1, TIMEOUT);
    assert!(peer.listed("before.bin").is_some());
}

#[test]
fn sqlite_tracker_recovers_from_full_disk() {
    check_tracker_recovery("a full disk under a tracker on SQLite", Setup::default());
}

#[test]
fn sled_tracker_recovers_from_full_disk() {
    check_tracker_recovery("a full disk under a tracker on sled", "sled".parse().unwrap());
}

/// Publishes files with long names until the tracker has no free space for them.
fn publish_until_full(tracker: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let shared = Shared::new(TransportSettings::default()).unwrap();
        let dialer = Arc::new(Dialer::new(vec![shared.tcp(), shared.zmq()]));
        let client = TrackerClient::new(dialer, tracker.parse().unwrap());
        let session = client.open_session(None, &KeyPair::generate(), &[]).await.unwrap().1.session;
        for number in 0..100_000_u32 {
            let name = format!("{number}-{}", "x".repeat(200)).parse().unwrap();
            let id = FileId::from_bytes(*blake3::hash(&number.to_be_bytes()).as_bytes());
            let file = Publication { name, id, size: 1, kind: FileKind::File };
            match client.publish(session, &file).await {
                Ok(_) => {}
                Err(error) if error.code() == Some(ErrorCode::Full) => return,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the tracker accepts publications without limit");
    });
    runtime.shutdown_background();
}

fn check_tracker_start(test: &str, setup: Setup) {
    let Some(disk) = Mount::in_memory(test, DISK) else { return };
    let world = World::default();
    let tracker_world = World::new(setup);
    let data = format!("tracker.data_dir={:?}", disk.path().join("data"));
    let mut tracker = tracker_world.tracker_with("tracker", &[&data]);
    let peer = world.running_peer("peer", &[&tracker]);
    let (file, _) = world.file("before.bin", 1000);
    peer.publish(&file, &[]);
    let ballast = disk.fill(24 * MIB);
    publish_until_full(tracker.endpoint());
    assert!(disk.free() >= MIB / 2, "only {} bytes are left", disk.free());
    drop(ballast);
    // Another program fills the disk to the last byte.
    tracker.kill();
    let ballast = disk.fill(0);
    tracker.start();
    wait_for("a listed file", TIMEOUT, || peer.listed("before.bin").is_some());
    drop(ballast);
    let (file, _) = world.file("after.bin", 1000);
    wait_for("a publication", TIMEOUT, || {
        peer.spawn([Path::new("publish"), &file]).wait(TIMEOUT).status == Some(0)
    });
}

#[test]
fn sqlite_tracker_keeps_reserve_and_starts_on_full_disk() {
    check_tracker_start("the reserve of a tracker on SQLite", Setup::default());
}

#[test]
fn sled_tracker_keeps_reserve_and_starts_on_full_disk() {
    check_tracker_start("the reserve of a tracker on sled", "sled".parse().unwrap());
}
