//! `storage check` and `storage bench` on the backends of the product: what they say, and that they leave nothing.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;
use std::path::{Path, PathBuf};

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Setup, World};
use enjambre_tests::wait::LONG;
use rustix::process::Signal;
use serde_json::Value;

fn with(backend: &'static str) -> World {
    World::new(Setup { backend, ..Setup::default() })
}

/// Everything below a folder but what the harness itself writes there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found.retain(|path| path.extension().is_none_or(|extension| extension != "log"));
    found.sort();
    found
}

#[test]
fn every_case_is_reported_and_nothing_is_left() {
    let world = with("memory");
    let peer = world.peer("peer", &[]);
    let before = files(peer.folder());
    let report = peer.run(["storage", "check", "--json"]).ok().json().remove(0);
    assert_eq!((report["backend"].as_str(), report["failed"].as_u64()), (Some("memory"), Some(0)));
    assert!(report["kit"].as_u64() >= Some(1), "{report}");
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(report["passed"].as_u64(), Some(cases.len() as u64));
    for role in ["records", "content"] {
        for group in ["core", "concurrency", "reopen", "limits"] {
            let of_it = |case: &&Value| case["role"] == role && case["group"] == group;
            let case = cases.iter().find(of_it).unwrap_or_else(|| panic!("{role} {group}: {report}"));
            assert_eq!(case["outcome"], "passed");
            assert!(case["obligation"].as_str().unwrap().ends_with('.'));
            assert!(case["operations"].as_u64() > Some(0) && case["milliseconds"].is_u64(), "{case}");
        }
    }
    assert_eq!(files(peer.folder()), before);
}

#[test]
fn a_kill_is_survived_by_databases_and_not_by_memory() {
    for backend in ["sqlite", "sled"] {
        let world = with(backend);
        let peer = world.peer("peer", &[]);
        let before = files(peer.folder());
        let cases = ["--case", "a_kill_loses_nothing_buffered", "--case", "a_kill_tears_no_batch"];
        let output = peer.run(["storage", "check"].into_iter().chain(cases)).ok();
        assert!(output.stdout.contains("4 passed, 0 failed"), "{}", output.stdout);
        assert_eq!(files(peer.folder()), before);
    }
    let world = with("memory");
    let peer = world.peer("peer", &[]);
    let lost = "a_kill_loses_nothing_durable";
    let output = peer.run(["storage", "check", "--case", lost]).expect_status(1);
    assert!(output.stdout.contains("FAILED") && output.stdout.contains("was killed"), "{}", output.stdout);
    assert!(output.stderr.contains(lost), "{}", output.stderr);
}

#[test]
fn it_works_beside_a_running_node_and_with_layers() {
    for backend in ["sqlite", "sled"] {
        let world = with(backend);
        let elsewhere = world.path("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let path = format!("storage.{backend}.path={}", elsewhere.join("library.data").display());
        let tracker = world.tracker("tracker");
        let (file, hash) = world.file("film.bin", MIB);
        let mut peer = world.running_peer_with("peer", &[&tracker], &[&path]);
        peer.publish(&file, &["--store"]);
        let before = fs::read_dir(&elsewhere).unwrap().count();
        for layer in ["metrics=true", "timeout=30s", "retries=2", "prefix=north"] {
            peer.set(&format!("storage.layers.{layer}"));
        }
        let some = ["spaces_are_apart", "no_update_is_lost", "a_drop_without_close_loses_nothing"];
        let cases = some.iter().flat_map(|name| ["--case", name]);
        let output = peer.run(["storage", "check"].into_iter().chain(cases)).ok();
        assert!(output.stdout.contains("6 passed, 0 failed"), "{}", output.stdout);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), before);
        // The library itself is as it was.
        let copy = world.path("copy");
        let fetching = world.peer("fetching", &[&tracker]);
        fetching.get_to("film.bin", &copy);
        assert_eq!(hash_of(&copy), hash);
    }
}

#[test]
fn an_interrupted_check_removes_what_it_made() {
    let world = with("sqlite");
    let peer = world.peer("peer", &[]);
    let before = files(peer.folder());
    let mut check = peer.spawn(["storage", "check"]);
    check.wait_line(LONG, |line| line.contains("absent_keys_have_no_value").then_some(()));
    check.signal(Signal::INT);
    let output = check.wait(LONG);
    assert_eq!(output.status, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("interrupted"), "{}", output.stderr);
    assert_eq!(files(peer.folder()), before);
}

#[test]
fn a_case_that_there_is_not_is_a_wrong_command_line() {
    let world = with("memory");
    let output = world.peer("peer", &[]).run(["storage", "check", "--case", "lost_updates"]).expect_status(2);
    assert!(output.stderr.contains("no_update_is_lost"), "{}", output.stderr);
}

#[test]
fn what_is_measured_has_figures_and_nothing_is_left() {
    for backend in ["memory", "sqlite"] {
        let world = with(backend);
        let tracker = world.tracker("tracker");
        let before = files(tracker.folder());
        let output = tracker.run(["storage", "bench", "--json", "--seconds", "1"]).ok();
        let report = output.json().remove(0);
        assert_eq!(report["backend"], backend);
        let measurements = report["measurements"].as_array().unwrap();
        let found = |name: &str, at_once: u64| {
            let of_it = |one: &&Value| one["name"] == name && one["at_once"].as_u64() == Some(at_once);
            measurements.iter().find(of_it).unwrap_or_else(|| panic!("{name} {at_once}: {report}"))
        };
        for (name, at_once) in [
            ("durable_commits", 1),
            ("durable_commits", 16),
            ("buffered_commits", 1),
            ("reads_of_one_key", 1),
        ] {
            let one = found(name, at_once);
            assert!(one["operations_per_second"].as_f64() > Some(0.0), "{one}");
            assert!(one["p50_microseconds"].as_f64() <= one["p99_microseconds"].as_f64(), "{one}");
        }
        for name in ["piece_ingest", "piece_read_back"] {
            let one = measurements.iter().find(|one| one["name"] == name).unwrap();
            assert!(one["bytes_per_second"].as_f64() > Some(0.0), "{one}");
        }
        assert!(found("scanned_entries", 1)["operations"].as_u64() > Some(0));
        assert_eq!(files(tracker.folder()), before);
    }
}
