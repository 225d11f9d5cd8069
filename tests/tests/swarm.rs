//! One body, run over every storage backend, both places for content and each transport: publish, list, get, lose the publisher,
//! restart everything from its databases, get again.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;

use enjambre_tests::content::{MIB, hash_of, read_tree, write_tree};
use enjambre_tests::node::{Setup, Wire, World};
use enjambre_tests::wait::LONG;

#[test]
fn sqlite_with_content_in_the_database() {
    whole_life(Setup { backend: "sqlite", content: "database", ..Setup::default() });
}

#[test]
fn sqlite_with_content_in_files() {
    whole_life(Setup { backend: "sqlite", content: "files", ..Setup::default() });
}

#[test]
fn sled_with_content_in_the_database() {
    whole_life(Setup { backend: "sled", content: "database", ..Setup::default() });
}

#[test]
fn sled_with_content_in_files() {
    whole_life(Setup { backend: "sled", content: "files", ..Setup::default() });
}

#[test]
fn over_zmq() {
    whole_life(Setup { wire: Wire::Zmq, ..Setup::default() });
}

#[test]
fn over_tcp() {
    whole_life(Setup { wire: Wire::Tcp, ..Setup::default() });
}

fn whole_life(setup: Setup) {
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

    // B finds both, and gets them in every way there is.
    let listed = b.listed("report.bin").expect("it is listed");
    assert_eq!((&listed["id"], &listed["size"]), (&hash.as_str().into(), &size.into()));
    assert_eq!(b.providers("report.bin"), Some(1));
    assert_eq!(b.providers("pictures"), Some(1));
    assert!(b.listed("pictures").expect("it is listed")["size"].as_u64() < Some(tree_size), "a manifest");
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
    b.wait_providers("report.bin", 2, LONG);
    b.wait_providers("pictures", 2, LONG);

    // A dies, and its files with it: C gets everything from B.
    a.kill();
    fs::remove_file(&file).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    fs::remove_file(world.path("got.bin")).unwrap();
    let mut c = world.running_peer("c", &[&tracker]);
    c.get_to(&hash, &world.path("c.bin"));
    assert_eq!(hash_of(&world.path("c.bin")), hash);
    c.get_to("pictures", &world.path("c-pictures"));
    assert_eq!(read_tree(&world.path("c-pictures")), tree);
    assert_eq!(read_names(&world, "c.bin"), ["c.bin"], "no partial file is left");
    c.kill();

    // Tracker and B come back with what is in their databases, and D gets it from B.
    tracker.kill();
    b.kill();
    tracker.start();
    b.start();
    let d = world.peer("d", &[&tracker]);
    d.get_to(&hash[..10], &world.path("d.bin"));
    assert_eq!(hash_of(&world.path("d.bin")), hash);
    d.get_to("pictures", &world.path("d-pictures"));
    assert_eq!(read_tree(&world.path("d-pictures")), tree);
    let in_library = b.in_library("report.bin").expect("B still has it");
    assert_eq!((&in_library["have"], &in_library["size"]), (&in_library["pieces"], &size.into()));
    b.run(["verify"]).ok();
}

/// The files in the test's folder whose names begin so.
fn read_names(world: &World, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(world.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}
