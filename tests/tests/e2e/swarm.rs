//! One scenario on every storage backend, content location and transport: publish, list, get, loss of the publisher, restart
//! of all nodes, and get again.

use std::fs;

use enjambre_tests::content::{MIB, hash_of, read_tree, write_tree};
use enjambre_tests::node::World;
use enjambre_tests::setup::{Setup, Wire};
use enjambre_tests::wait::TIMEOUT;

#[test]
fn swarm_on_sqlite() {
    check_swarm(Setup { backend: "sqlite", content: "database", ..Setup::default() });
}

#[test]
fn swarm_on_sqlite_with_content_in_files() {
    check_swarm(Setup { backend: "sqlite", content: "files", ..Setup::default() });
}

#[test]
fn swarm_on_sled() {
    check_swarm(Setup { backend: "sled", content: "database", ..Setup::default() });
}

#[test]
fn swarm_on_sled_with_content_in_files() {
    check_swarm(Setup { backend: "sled", content: "files", ..Setup::default() });
}

#[test]
fn swarm_over_zmq() {
    check_swarm(Setup { wire: Wire::Zmq, ..Setup::default() });
}

#[test]
fn swarm_over_tcp() {
    check_swarm(Setup { wire: Wire::Tcp, ..Setup::default() });
}

fn check_swarm(setup: Setup) {
    let world = World::new(setup);
    let size = 5 * MIB + 123;
    let (file, hash) = world.file("report.bin", size);
    let folder = world.path("pictures");
    write_tree(&folder, 7);
    let (tree, tree_size) = (read_tree(&folder), 4_000);

    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    let mut b = world.running_peer("b", &[&tracker]);
    a.publish(&file, &[]);
    a.publish(&folder, &[]);

    // B lists both and downloads them with every command.
    let listed = b.listed("report.bin").expect("the file is listed");
    assert_eq!((&listed["id"], &listed["size"]), (&hash.as_str().into(), &size.into()));
    assert_eq!(b.providers("report.bin"), Some(1));
    assert_eq!(b.providers("pictures"), Some(1));
    assert!(
        b.listed("pictures").expect("the file is listed")["size"].as_u64() < Some(tree_size),
        "the size is not that of the manifest"
    );
    b.run(["get", "report.bin"]).ok();
    b.run(["get", "pictures"]).ok();
    let exported = world.path("exported.bin");
    b.run(["export", "report.bin", "-o", exported.to_str().unwrap()]).ok();
    assert_eq!(hash_of(&exported), hash);
    let exported = world.path("exported");
    b.run(["export", "pictures", "-o", exported.to_str().unwrap()]).ok();
    assert_eq!(read_tree(&exported), tree);
    b.get_to("report.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
    b.wait_providers("report.bin", 2, TIMEOUT);
    b.wait_providers("pictures", 2, TIMEOUT);

    // A is killed and its files are deleted. B is the only provider for C.
    a.kill();
    fs::remove_file(&file).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    fs::remove_file(world.path("got.bin")).unwrap();
    let mut c = world.running_peer("c", &[&tracker]);
    c.get_to(&hash, &world.path("c.bin"));
    assert_eq!(hash_of(&world.path("c.bin")), hash);
    c.get_to("pictures", &world.path("c-pictures"));
    assert_eq!(read_tree(&world.path("c-pictures")), tree);
    assert_eq!(names_with_prefix(&world, "c.bin"), ["c.bin"], "a partial file exists");
    c.kill();

    // After the restart of the tracker and B from their databases, D downloads from B.
    tracker.kill();
    b.kill();
    tracker.start();
    b.start();
    let d = world.peer("d", &[&tracker]);
    d.get_to(&hash[..10], &world.path("d.bin"));
    assert_eq!(hash_of(&world.path("d.bin")), hash);
    d.get_to("pictures", &world.path("d-pictures"));
    assert_eq!(read_tree(&world.path("d-pictures")), tree);
    let in_library = b.in_library("report.bin").expect("the library of B contains the file");
    assert_eq!((&in_library["available_pieces"], &in_library["size"]), (&in_library["pieces"], &size.into()));
    b.run(["verify"]).ok();
}

/// Returns the names in the directory of the test that start with a prefix.
fn names_with_prefix(world: &World, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(world.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}
