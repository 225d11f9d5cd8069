//! A program with a defective storage backend, which `storage check` detects. Without a test harness: the test runs itself
//! as that program, and the program runs itself as the child process of the crash tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::process::{Command, ExitCode, Output};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre::App;
use enjambre::registry::NoSettings;
use enjambre_core::{
    Batch, Durability, Key, KeyRange, Limits, Memory, Place, Role, Space, Storage, StorageError,
};

/// A storage that ignores the conditions of a commit.
#[derive(Debug)]
struct Unconditional(Memory);

#[async_trait]
impl Storage for Unconditional {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.0.get(space, keys).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.0.scan(space, range, limit).await
    }

    async fn commit(&self, mut batch: Batch, durability: Durability) -> Result<(), StorageError> {
        batch.conditions.clear();
        self.0.commit(batch, durability).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.0.sync().await
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.0.close().await
    }
}

/// Records opened and removed scratch places in the data directory.
fn record(place: &Place, action: &str) {
    let scratch = place.scratch.as_ref().expect("`storage check` does not open the data of the node");
    let path = scratch.home().join("actions");
    let mut actions = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(actions, "{action} {}", scratch.name()).unwrap();
}

fn program() -> ExitCode {
    let mut app = App::new();
    app.register_storage("unconditional", |NoSettings {}, place: Place, _role: Role| {
        record(&place, "opened");
        async { Ok(Arc::new(Unconditional(Memory::new())) as _) }
    });
    app.remove_scratch_with("unconditional", |NoSettings {}, place: Place, _role: Role| {
        record(&place, "removed");
        async { Ok(()) }
    });
    app.main()
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "storage") {
        return program();
    }
    defective_backend_is_detected();
    println!("test defective_backend_is_detected ... ok");
    ExitCode::SUCCESS
}

fn defective_backend_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let config = folder.path().join("unconditional.toml");
    fs::write(&config, "[peer]\ndata_dir = \"data\"\n[storage]\nbackend = \"unconditional\"\n").unwrap();
    let check = |arguments: &[&str]| -> (Output, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["storage", "check", "--config"]).arg(&config).args(arguments);
        let output = command.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        (output, stdout)
    };

    let (output, stdout) =
        check(&["--case", "concurrent_updates_are_not_lost", "--case", "scan_of_inverted_range_is_empty"]);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    for text in ["so that no update is lost.", "last operations:", "commit Buffered", "2 passed, 2 failed"] {
        assert!(stdout.contains(text), "{text:?} in {stdout}");
    }
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        error,
        "error: the unconditional storage violates requirements: concurrent_updates_are_not_lost\n"
    );

    let (output, stdout) = check(&["--case", "concurrent_updates_are_not_lost", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let case = &report["cases"][0];
    assert_eq!((case["outcome"].as_str(), report["failed"].as_u64()), (Some("failed"), Some(2)));
    assert!(case["violation"].as_str().unwrap().contains("update was lost"), "{case}");
    assert!(!case["last_operations"].as_array().unwrap().is_empty(), "{case}");

    // The child process of a crash test is this program with this backend.
    let (output, stdout) = check(&["--case", "durable_commits_survive_kill"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout.contains("was killed") && stdout.contains("0 passed, 2 failed"), "{stdout}");

    let (output, stdout) = check(&["--case", "scan_of_inverted_range_is_empty"]);
    assert_eq!(output.status.code(), Some(0), "{stdout}");

    let actions = fs::read_to_string(data.join("actions")).unwrap();
    for line in actions.lines() {
        let name = line.split(' ').next_back().unwrap();
        assert_eq!(actions.matches(&format!("removed {name}\n")).count(), 1, "{name} is removed once");
    }
    let left: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["actions"]);
}
