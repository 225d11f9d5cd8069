//! A piece that rotted on the disk: noticed when it is served, no longer offered, never delivered, and fetched again.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Peer, World};
use enjambre_tests::wait::{LONG, wait_for, wait_until};
use rustix::process::Signal;

/// Flips a byte of each copy of these bytes that lies in the files below a folder; says how many there were.
fn rot(folder: &Path, bytes: &[u8]) -> usize {
    let mut rotten = 0;
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let Ok(file) = OpenOptions::new().read(true).write(true).open(entry.path()) else { continue };
            let content = std::fs::read(entry.path()).unwrap_or_default();
            for at in content.windows(bytes.len()).enumerate().filter(|(_, found)| *found == bytes) {
                file.write_all_at(&[bytes[0] ^ 1], at.0 as u64).unwrap();
                rotten += 1;
            }
        }
    }
    rotten
}

fn is_whole(peer: &Peer, name: &str) -> bool {
    peer.in_library(name).is_some_and(|entry| entry["have"] == entry["pieces"] && entry["have"] != 0)
}

/// Of two peers that have a file the one rots, and serves a third.
fn noticed_and_mended(setup: &str, size: u64) {
    let world = World::new(setup.parse().unwrap());
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let mut source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &["--store"]);
    let mut rotten = world.running_peer("rotten", &[&tracker]);
    rotten.run(["get", "film.bin", "--sync"]).ok();
    rotten.stop(Signal::TERM, LONG).ok();
    // The middle of a piece, away from the heads of pages.
    let content = std::fs::read(&file).unwrap();
    let place = content.len() / 3;
    let flipped = rot(&rotten.folder().join("data"), &content[place..place + 24]);
    assert!(flipped > 0, "the content was not found");
    // Alone it can give nobody anything wrong.
    source.stop(Signal::TERM, LONG).ok();
    rotten.start();
    let asker = world.peer_with("asker", &[&tracker], &["download.patience=1s"]);
    let out = world.path("out");
    let args = [Path::new("get"), Path::new("film.bin"), Path::new("-o"), &out];
    let output = wait_until("the provider", LONG, || {
        let output = asker.run(args);
        (!output.stderr.contains("no living peer")).then_some(output)
    });
    assert_eq!(output.status, Some(4), "{output:?}");
    assert!(!out.exists());
    wait_for("an end of the claim", LONG, || !is_whole(&rotten, "film.bin"));
    // With another source it is whole again, by itself, once somebody asks.
    source.start();
    wait_for("a whole file", LONG * 3, || is_whole(&rotten, "film.bin"));
    rotten.run(["verify"]).ok();
    source.stop(Signal::TERM, LONG).ok();
    asker.run(args).ok();
    assert_eq!(hash_of(&out), hash);
}

#[test]
fn in_a_database_of_sqlite() {
    noticed_and_mended("sqlite", 3 * MIB);
}

#[test]
fn in_files() {
    noticed_and_mended("sqlite+files", 3 * MIB);
}

#[test]
fn a_small_file() {
    noticed_and_mended("sqlite+files", 100_000);
}

/// A file of the user that looks as it did is withdrawn when it is served; `get` fetches it again.
#[test]
fn in_a_linked_file_that_looks_as_it_did() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 3 * MIB);
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &["--store"]);
    let linked = world.path("linked.bin");
    std::fs::copy(&file, &linked).unwrap();
    let mut rotten = world.running_peer("rotten", &[&tracker]);
    rotten.publish(&linked, &["--name", "film.bin"]);
    rotten.stop(Signal::TERM, LONG).ok();
    let before = std::fs::metadata(&linked).unwrap();
    let mut content = std::fs::read(&linked).unwrap();
    content[MIB as usize] ^= 1;
    let handle = OpenOptions::new().write(true).open(&linked).unwrap();
    handle.write_all_at(&content[MIB as usize..=MIB as usize], MIB).unwrap();
    handle.set_modified(before.modified().unwrap()).unwrap();
    drop(handle);
    rotten.start();
    // It and the other source are both asked; what comes is right.
    let asker = world.peer("asker", &[&tracker]);
    asker.wait_providers("film.bin", 2, LONG);
    asker.get_to("film.bin", &world.path("out"));
    assert_eq!(hash_of(&world.path("out")), hash);
    let output = rotten.run(["verify"]);
    assert!(output.status == Some(1) || rotten.in_library("film.bin").unwrap()["withdrawn"] == true);
    rotten.run(["get", &hash]).ok();
    assert!(is_whole(&rotten, "film.bin"));
}
