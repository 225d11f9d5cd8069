//! Short runs of `--example power_cut`. They require root and are skipped with a message if no file system can be mounted.

use std::path::Path;

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::mount::{Mount, copy_image, make_ext4};
use enjambre_tests::node::World;
use enjambre_tests::power_cut;

fn check(setup: &str) {
    let test = format!("a power cut with {setup}");
    let Some(tally) = power_cut::run(&test, setup.parse().unwrap(), 2, 7, |_| {}) else { return };
    assert!(tally.published > 0, "{tally:?}");
}

#[test]
fn sqlite_survives_power_cuts() {
    check("sqlite");
}

#[test]
fn sqlite_with_content_in_files_survives_power_cuts() {
    check("sqlite+files");
}

#[test]
fn sled_survives_power_cuts() {
    check("sled");
}

#[test]
fn sled_with_content_in_files_survives_power_cuts() {
    check("sled+files");
}

#[test]
fn exported_file_survives_power_cut() {
    let test = "a power cut after an export";
    let world = World::default();
    let images = [world.path("disk-0"), world.path("disk-1")];
    if !make_ext4(test, &images[0], 64 * MIB) {
        return;
    }
    let Some(mut disk) = Mount::image(test, &images[0]) else { return };
    let (file, hash) = world.file("film.bin", MIB);
    let tracker = world.tracker("tracker");
    let peer = world.running_peer("peer", &[&tracker]);
    peer.publish(&file, &[]);
    let copy = disk.path().join("copy");
    peer.run([Path::new("export"), Path::new("film.bin"), Path::new("-o"), &copy]).ok();
    copy_image(&images[0], &images[1]);
    disk.replace(&images[1]);
    assert_eq!(hash_of(&copy), hash);
}
