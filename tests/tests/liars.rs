//! Providers that lie cost themselves and not the download.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::fake_provider::{FakeProvider, Lie};
use enjambre_tests::node::{Wire, World};
use enjambre_tests::wait::{LONG, wait_for};
use std::fs;
use std::time::Instant;

fn completes_in_spite_of(lie: Lie) {
    completes(&World::default(), lie);
}

/// The liar is alone at first, so it is certain that it was asked; then somebody honest comes.
fn completes(world: &World, lie: Lie) {
    // Not a whole number of pieces, so that a lie about the size leaves their number as it is.
    let (file, hash) = world.file("film.bin", 3 * MIB + 17);
    let tracker = world.tracker("tracker");
    let begun = Instant::now();
    let liar = FakeProvider::start(tracker.endpoint(), "film.bin", fs::read(&file).unwrap(), lie).unwrap();
    let b = world.running_peer("b", &[&tracker]);
    let path = world.path("got.bin");
    let get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    wait_for("the first lie", LONG, || liar.told() > 0);
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let output = get.wait(LONG).ok();
    assert_eq!(hash_of(&path), hash);
    let last = output.json().pop().expect("events");
    assert_eq!((&last["event"], &last["bytes"]), (&"complete".into(), &(3 * MIB + 17).into()), "{last}");
    // Once found out it is left alone, or asked again a few times a second.
    let (told, most) = (liar.told() as u64, 100 + 4 * begun.elapsed().as_secs());
    assert!(told < most, "{told} lies were listened to");
}

#[test]
fn wrong_content() {
    completes_in_spite_of(Lie::Content);
}

#[test]
fn short_pieces() {
    completes_in_spite_of(Lie::Length);
}

#[test]
fn a_wrong_manifest() {
    completes_in_spite_of(Lie::Manifest);
}

#[test]
fn a_wrong_size() {
    completes_in_spite_of(Lie::Size);
}

#[test]
fn no_answer() {
    completes_in_spite_of(Lie::Silence);
}

#[test]
fn the_right_piece_of_another_file() {
    completes_in_spite_of(Lie::OtherFile);
}

#[test]
fn the_right_content_of_another_piece() {
    completes_in_spite_of(Lie::OtherPiece);
}

#[test]
fn a_manifest_of_another_size() {
    completes_in_spite_of(Lie::SizeOfManifest);
}

#[test]
fn busy_for_ever() {
    completes_in_spite_of(Lie::Busy);
}

#[test]
fn wrong_content_over_tcp() {
    completes(&World::over(Wire::Tcp), Lie::Content);
}

#[test]
fn no_answer_over_tcp() {
    completes(&World::over(Wire::Tcp), Lie::Silence);
}
