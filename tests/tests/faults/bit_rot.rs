//! Bit rot in a piece is detected when the piece is served. The piece is withdrawn, never delivered, and downloaded again.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Peer, World};
use enjambre_tests::wait::{TIMEOUT, wait_for, wait_until};
use rustix::process::Signal;

/// Changes a byte in every occurrence of `bytes` in the files below a directory, and returns the number of occurrences.
fn corrupt(folder: &Path, bytes: &[u8]) -> usize {
    let mut count = 0;
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
            for (offset, _) in content.windows(bytes.len()).enumerate().filter(|(_, found)| *found == bytes) {
                file.write_all_at(&[bytes[0] ^ 1], offset as u64).unwrap();
                count += 1;
            }
        }
    }
    count
}

fn is_complete(peer: &Peer, name: &str) -> bool {
    peer.in_library(name)
        .is_some_and(|entry| entry["available_pieces"] == entry["pieces"] && entry["available_pieces"] != 0)
}

/// Damages the file of one of two providers and downloads the file with a third peer.
fn check_repair(setup: &str, size: u64) {
    let world = World::new(setup.parse().unwrap());
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let mut source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &["--copy"]);
    let mut damaged = world.running_peer("damaged", &[&tracker]);
    damaged.run(["get", "film.bin", "--sync"]).ok();
    damaged.stop(Signal::TERM, TIMEOUT).ok();
    // In the middle of a piece, so that page headers stay intact.
    let content = std::fs::read(&file).unwrap();
    let offset = content.len() / 3;
    let count = corrupt(&damaged.folder().join("data"), &content[offset..offset + 24]);
    assert!(count > 0, "the content was not found");
    // As the only provider, it sends no invalid data.
    source.stop(Signal::TERM, TIMEOUT).ok();
    damaged.start();
    let client = world.peer_with("client", &[&tracker], &["download.provider_timeout=1s"]);
    let out = world.path("out");
    let args = [Path::new("get"), Path::new("film.bin"), Path::new("-o"), &out];
    let output = wait_until("the provider", TIMEOUT, || {
        let output = client.run(args);
        (!output.stderr.contains("no living peer")).then_some(output)
    });
    assert_eq!(output.status, Some(4), "{output:?}");
    assert!(!out.exists());
    wait_for("the withdrawal of the damaged piece", TIMEOUT, || !is_complete(&damaged, "film.bin"));
    // With another provider it repairs the file automatically after a request.
    source.start();
    wait_for("the repair of the file", TIMEOUT * 3, || is_complete(&damaged, "film.bin"));
    damaged.run(["verify"]).ok();
    source.stop(Signal::TERM, TIMEOUT).ok();
    client.run(args).ok();
    assert_eq!(hash_of(&out), hash);
}

#[test]
fn bit_rot_in_sqlite_content_is_repaired() {
    check_repair("sqlite", 3 * MIB);
}

#[test]
fn bit_rot_in_content_files_is_repaired() {
    check_repair("sqlite+files", 3 * MIB);
}

#[test]
fn bit_rot_in_small_file_is_repaired() {
    check_repair("sqlite+files", 100_000);
}

/// A changed linked file with an unchanged modification time is withdrawn when it is served. `get` downloads it again.
#[test]
fn bit_rot_in_linked_file_is_detected() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 3 * MIB);
    let tracker = world.tracker("tracker");
    let source = world.running_peer("source", &[&tracker]);
    source.publish(&file, &["--copy"]);
    let linked = world.path("linked.bin");
    std::fs::copy(&file, &linked).unwrap();
    let mut damaged = world.running_peer("damaged", &[&tracker]);
    damaged.publish(&linked, &["--name", "film.bin"]);
    damaged.stop(Signal::TERM, TIMEOUT).ok();
    let before = std::fs::metadata(&linked).unwrap();
    let mut content = std::fs::read(&linked).unwrap();
    content[MIB as usize] ^= 1;
    let handle = OpenOptions::new().write(true).open(&linked).unwrap();
    handle.write_all_at(&content[MIB as usize..=MIB as usize], MIB).unwrap();
    handle.set_modified(before.modified().unwrap()).unwrap();
    drop(handle);
    damaged.start();
    // The client sends requests to both providers, and the result is correct.
    let client = world.peer("client", &[&tracker]);
    client.wait_providers("film.bin", 2, TIMEOUT);
    client.get_to("film.bin", &world.path("out"));
    assert_eq!(hash_of(&world.path("out")), hash);
    let output = damaged.run(["verify"]);
    assert!(output.status == Some(1) || damaged.in_library("film.bin").unwrap()["withdrawn"] == "changed");
    damaged.run(["get", &hash]).ok();
    assert!(is_complete(&damaged, "film.bin"));
}
