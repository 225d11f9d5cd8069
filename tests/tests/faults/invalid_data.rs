//! Downloads complete in spite of providers that send invalid data.

use std::fs;
use std::time::Instant;

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::fake_provider::{FakeProvider, Misbehavior};
use enjambre_tests::node::World;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};
fn check(misbehavior: Misbehavior) {
    check_in(&World::default(), misbehavior);
}

/// Starts a download with only the misbehaving provider, and adds a correct provider after the first invalid reply.
fn check_in(world: &World, misbehavior: Misbehavior) {
    // Not a whole number of pieces, so that a wrong size does not change the number of pieces.
    let (file, hash) = world.file("film.bin", 3 * MIB + 17);
    let tracker = world.tracker("tracker");
    let started = Instant::now();
    let provider =
        FakeProvider::start(tracker.endpoint(), "film.bin", fs::read(&file).unwrap(), misbehavior).unwrap();
    let b = world.running_peer("b", &[&tracker]);
    let path = world.path("got.bin");
    let get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    wait_for("the first invalid reply", TIMEOUT, || provider.misbehavior_count() > 0);
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let output = get.wait(TIMEOUT).ok();
    assert_eq!(hash_of(&path), hash);
    let last = output.json().pop().expect("there is an event");
    assert_eq!((&last["event"], &last["bytes"]), (&"complete".into(), &(3 * MIB + 17).into()), "{last}");
    // The peer bans the provider, or sends it only a few more requests a second.
    let (count, limit) = (provider.misbehavior_count() as u64, 100 + 4 * started.elapsed().as_secs());
    assert!(count < limit, "the provider received {count} requests");
}

#[test]
fn wrong_content_is_rejected() {
    check(Misbehavior::Content);
}

#[test]
fn short_pieces_are_rejected() {
    check(Misbehavior::Length);
}

#[test]
fn wrong_manifest_is_rejected() {
    check(Misbehavior::Manifest);
}

#[test]
fn wrong_size_is_rejected() {
    check(Misbehavior::Size);
}

#[test]
fn silent_provider_is_replaced() {
    check(Misbehavior::Silence);
}

#[test]
fn piece_of_another_file_is_rejected() {
    check(Misbehavior::OtherFile);
}

#[test]
fn piece_with_wrong_index_is_rejected() {
    check(Misbehavior::OtherPiece);
}

#[test]
fn manifest_of_another_size_is_rejected() {
    check(Misbehavior::ManifestSize);
}

#[test]
fn always_busy_provider_is_replaced() {
    check(Misbehavior::Busy);
}

#[test]
fn wrong_content_over_tcp_is_rejected() {
    check_in(&World::over(Wire::Tcp), Misbehavior::Content);
}

#[test]
fn silent_provider_over_tcp_is_replaced() {
    check_in(&World::over(Wire::Tcp), Misbehavior::Silence);
}
