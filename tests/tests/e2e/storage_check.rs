//! `storage check` and `storage bench` on the included backends: their output and the removal of their data.

use std::fs;
use std::path::{Path, PathBuf};

use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::TIMEOUT;
use rustix::process::Signal;
use serde_json::Value;

fn world(backend: &'static str) -> World {
    World::new(Setup { backend, ..Setup::default() })
}

/// Returns all paths below a directory, except the logs of the test harness.
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
fn storage_check_reports_every_case() {
    let world = world("memory");
    let peer = world.peer("peer", &[]);
    let before = files(peer.folder());
    let report = peer.run(["storage", "check", "--json"]).ok().json().remove(0);
    assert_eq!((report["backend"].as_str(), report["failed"].as_u64()), (Some("memory"), Some(0)));
    assert!(report["kit_version"].as_u64() >= Some(1), "{report}");
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(report["passed"].as_u64(), Some(cases.len() as u64));
    for role in ["records", "content"] {
        for group in ["core", "concurrency", "reopen", "limits"] {
            let matches = |case: &&Value| case["role"] == role && case["group"] == group;
            let case = cases.iter().find(matches).unwrap_or_else(|| panic!("{role} {group}: {report}"));
            assert_eq!(case["outcome"], "passed");
            assert!(case["requirement"].as_str().unwrap().ends_with('.'));
            assert!(case["operations"].as_u64() > Some(0) && case["duration_ms"].is_u64(), "{case}");
        }
    }
    assert_eq!(files(peer.folder()), before);
}

#[test]
fn crash_check_passes_for_databases_only() {
    for backend in ["sqlite", "sled"] {
        let world = world(backend);
        let peer = world.peer("peer", &[]);
        let before = files(peer.folder());
        let cases = ["--case", "buffered_commits_survive_kill", "--case", "batches_are_atomic_after_kill"];
        let output = peer.run(["storage", "check"].into_iter().chain(cases)).ok();
        assert!(output.stdout.contains("4 passed, 0 failed"), "{}", output.stdout);
        assert_eq!(files(peer.folder()), before);
    }
    let world = world("memory");
    let peer = world.peer("peer", &[]);
    let lost = "durable_commits_survive_kill";
    let output = peer.run(["storage", "check", "--case", lost]).expect_status(1);
    assert!(output.stdout.contains("FAILED") && output.stdout.contains("was killed"), "{}", output.stdout);
    assert!(output.stderr.contains(lost), "{}", output.stderr);
}

#[test]
fn storage_check_runs_beside_node_and_with_layers() {
    for backend in ["sqlite", "sled"] {
        let world = world(backend);
        let directory = world.path("databases");
        fs::create_dir(&directory).unwrap();
        let path = format!("storage.{backend}.path={}", directory.join("library.data").display());
        let tracker = world.tracker("tracker");
        let (file, hash) = world.file("film.bin", MIB);
        let mut peer = world.running_peer_with("peer", &[&tracker], &[&path]);
        peer.publish(&file, &["--copy"]);
        let before = fs::read_dir(&directory).unwrap().count();
        for layer in ["timeout=30s", "retries=2"] {
            peer.set(&format!("storage.layers.{layer}"));
        }
        let some = [
            "spaces_are_independent",
            "concurrent_updates_are_not_lost",
            "committed_data_survives_drop_without_close",
        ];
        let cases = some.iter().flat_map(|name| ["--case", name]);
        let output = peer.run(["storage", "check"].into_iter().chain(cases)).ok();
        assert!(output.stdout.contains("6 passed, 0 failed"), "{}", output.stdout);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), before);
        // The check does not change the library.
        let copy = world.path("copy");
        let fetching = world.peer("fetching", &[&tracker]);
        fetching.get_to("film.bin", &copy);
        assert_eq!(hash_of(&copy), hash);
    }
}

#[test]
fn interrupted_storage_check_cleans_up() {
    let world = world("sqlite");
    let peer = world.peer("peer", &[]);
    let before = files(peer.folder());
    let mut check = peer.spawn(["storage", "check"]);
    check.wait_line(TIMEOUT, |line| line.contains("get_of_absent_key_returns_none").then_some(()));
    check.signal(Signal::INT);
    let output = check.wait(TIMEOUT).expect_status(130);
    assert!(output.stderr.contains("interrupted"), "{}", output.stderr);
    assert_eq!(files(peer.folder()), before);
}

#[test]
fn unknown_case_is_a_usage_error() {
    let world = world("memory");
    let output = world
        .peer("peer", &[])
        .run(["storage", "check", "--case", "concurrent_updates_not_lost"])
        .expect_status(2);
    assert!(output.stderr.contains("concurrent_updates_are_not_lost"), "{}", output.stderr);
}

#[test]
fn storage_bench_reports_figures_and_cleans_up() {
    for backend in ["memory", "sqlite"] {
        let world = world(backend);
        let tracker = world.tracker("tracker");
        let before = files(tracker.folder());
        let output = tracker.run(["storage", "bench", "--json", "--seconds", "1"]).ok();
        let report = output.json().remove(0);
        assert_eq!(report["backend"], backend);
        let measurements = report["measurements"].as_array().unwrap();
        let found = |name: &str, concurrency: u64| {
            let matches =
                |one: &&Value| one["name"] == name && one["concurrency"].as_u64() == Some(concurrency);
            measurements.iter().find(matches).unwrap_or_else(|| panic!("{name} {concurrency}: {report}"))
        };
        for (name, concurrency) in
            [("durable_commits", 1), ("durable_commits", 16), ("buffered_commits", 1), ("point_reads", 1)]
        {
            let one = found(name, concurrency);
            assert!(one["operations_per_second"].as_f64() > Some(0.0), "{one}");
            assert!(one["p50_microseconds"].as_f64() <= one["p99_microseconds"].as_f64(), "{one}");
        }
        for name in ["piece_writes", "piece_reads"] {
            let one = measurements.iter().find(|one| one["name"] == name).unwrap();
            assert!(one["bytes_per_second"].as_f64() > Some(0.0), "{one}");
        }
        assert!(found("scanned_entries", 1)["operations"].as_u64() > Some(0));
        assert_eq!(files(tracker.folder()), before);
    }
}
