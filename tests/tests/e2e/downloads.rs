//! The download queue of a daemon.

use enjambre_tests::content::{MIB, hash_of, read_tree, write_tree};
use enjambre_tests::node::{Peer, World};
use enjambre_tests::wait::{TIMEOUT, wait_until};
use serde_json::Value;

/// The maximum number of bytes that are downloaded again after `kill -9`.
const RESUME_LOSS: u64 = 16 * MIB;

#[track_caller]
fn downloads(peer: &Peer) -> Vec<Value> {
    peer.run(["downloads", "--json"]).ok().json()
}

/// Waits until a download satisfies the condition.
#[track_caller]
fn wait_download(peer: &Peer, name: &str, is_reached: impl Fn(&Value) -> bool) -> Value {
    wait_until(name, TIMEOUT, || {
        downloads(peer).into_iter().find(|download| download["name"] == name && is_reached(download))
    })
}

fn done(download: &Value) -> u64 {
    download["done"].as_u64().unwrap()
}

#[test]
fn queue_survives_kill_of_daemon() {
    let world = World::default();
    let size = 48 * MIB;
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let mut b = world.running_peer_with("b", &[&tracker], &["limits.download=\"8MB/s\""]);

    let added = &b.run(["downloads", "add", "film.bin", "--json"]).ok().json()[0];
    assert_eq!(
        (&added["id"], &added["origin"], &added["position"]),
        (&hash.as_str().into(), &"api".into(), &0.into())
    );
    b.run(["downloads", "add", "film.bin"]).ok();
    let active = wait_download(&b, "film.bin", |download| done(download) >= 12 * MIB);
    assert!(active["state"] == "active" && active["rate"].as_u64().unwrap() > 0, "{active}");
    let sources = b.run(["downloads", "-v"]).ok().stdout;
    assert!(sources.contains(a.endpoint()), "{sources}");
    let paused = &b.run(["downloads", "pause", "film.bin", "--json"]).ok().json()[0];
    assert_eq!((&paused["state"], downloads(&b).len()), (&"paused".into(), 1));

    b.kill();
    b.start();
    let kept = &downloads(&b)[0];
    assert!(kept["state"] == "paused" && done(kept) + RESUME_LOSS >= 12 * MIB, "{kept}");
    b.run(["downloads", "resume", &hash[..16]]).ok();
    wait_download(&b, "film.bin", |download| done(download) >= 24 * MIB);
    b.kill();
    // Without a daemon the commands work on its database.
    assert_eq!(downloads(&b)[0]["state"], "queued");
    b.set("limits.download=unlimited");
    b.start();
    let complete = wait_download(&b, "film.bin", |download| download["state"] == "complete");
    assert_eq!((done(&complete), &complete["position"]), (size, &Value::Null));
    assert!(a.sent() <= size + 2 * RESUME_LOSS + 20 * MIB, "{} bytes were sent for {size}", a.sent());
    let exported = world.path("film");
    b.run(["export", "film.bin", "-o", exported.to_str().unwrap()]).ok();
    assert_eq!(hash_of(&exported), hash);

    b.run(["downloads", "pause", "film.bin"]).expect_status(1);
    b.run(["downloads", "cancel", "film.bin"]).ok();
    assert!(downloads(&b).is_empty() && b.in_library("film.bin").is_some());
    b.run(["downloads", "cancel", "film.bin"]).expect_status(3);
}

#[test]
fn directory_is_queued_and_cancelled_with_its_files() {
    let world = World::default();
    let folder = world.path("folder");
    write_tree(&folder, 300_000);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&folder, &[]);
    let mut b = world.running_peer_with("b", &[&tracker], &["limits.download=\"64KiB/s\""]);
    let part = b.run(["downloads", "add", "folder/0"]);
    assert!(part.status == Some(2) && part.stderr.contains("enjambre get"), "a part is refused: {part:?}");
    b.run(["downloads", "add", "folder"]).ok();
    wait_download(&b, "folder", |download| download["state"] == "active" && done(download) > 0);
    b.run(["downloads", "cancel", "folder"]).ok();
    assert!(downloads(&b).is_empty() && b.in_library("folder").is_none());

    b.kill();
    b.set("limits.download=unlimited");
    b.start();
    b.run(["downloads", "add", "folder"]).ok();
    let complete = wait_download(&b, "folder", |download| download["state"] == "complete");
    assert!(complete["kind"] == "collection" && complete["size"] == complete["done"], "{complete}");
    let exported = world.path("exported");
    b.run(["export", "folder", "-o", exported.to_str().unwrap()]).ok();
    assert!(read_tree(&exported) == read_tree(&folder), "the downloaded directory differs");
}

#[test]
fn download_of_command_is_listed_until_it_ends() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 32 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.running_peer_with("b", &[&tracker], &["limits.download=\"1MB/s\""]);
    let get = b.spawn(["get", "film.bin"]);
    let listed = wait_download(&b, "film.bin", |download| download["state"] == "active");
    assert_eq!((&listed["origin"], &listed["position"]), (&"command".into(), &Value::Null));
    let refused = b.run(["downloads", "pause", "film.bin"]).expect_status(1);
    assert!(refused.stderr.contains("by a command"), "{}", refused.stderr);
    get.kill();
    wait_until("an empty list", TIMEOUT, || downloads(&b).is_empty().then_some(()));
}
