//! A program of one's own with a storage backend that is wrong, which its `storage check` finds out. Without a harness:
//! the test runs itself as that program, and the program runs itself as the process to be killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::process::{Command, ExitCode, Output};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre::App;
use enjambre::registry::{NoSettings, Place};
use enjambre_core::storage::Storage;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::memory::Memory;
use enjambre_core::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// Commits whatever the conditions say.
#[derive(Debug)]
struct Careless(Memory);

#[async_trait]
impl Storage for Careless {
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

/// Notes in the data folder what is opened and removed, as something on a server would be.
fn note(place: &Place, what: &str) {
    let scratch = place.scratch.as_ref().expect("a check never opens the data of the node");
    let path = scratch.home().join("notes");
    let mut notes = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(notes, "{what} {}", scratch.name()).unwrap();
}

fn program() -> ExitCode {
    let mut app = App::stock();
    app.register_storage("careless", |NoSettings {}, place: Place| {
        note(&place, "opened");
        async { Ok(Arc::new(Careless(Memory::new())) as _) }
    });
    app.remove_scratch_with("careless", |NoSettings {}, place: Place| {
        note(&place, "removed");
        async { Ok(()) }
    });
    app.main()
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "storage") {
        return program();
    }
    it_is_found_out();
    println!("test it_is_found_out ... ok");
    ExitCode::SUCCESS
}

fn it_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let config = folder.path().join("own.toml");
    fs::write(&config, "[peer]\ndata_dir = \"data\"\n[storage]\nbackend = \"careless\"\n").unwrap();
    let check = |arguments: &[&str]| -> (Output, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["storage", "check", "--config"]).arg(&config).args(arguments);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output, said)
    };

    let (output, said) = check(&["--case", "no_update_is_lost", "--case", "inverted_ranges_are_empty"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for text in ["so that no update is lost.", "after:", "commit Buffered", "2 passed, 2 failed"] {
        assert!(said.contains(text), "{text:?} in {said}");
    }
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, "error: the careless storage does not keep its obligations: no_update_is_lost\n");

    let (output, said) = check(&["--case", "no_update_is_lost", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let case = &report["cases"][0];
    assert_eq!((case["outcome"].as_str(), report["failed"].as_u64()), (Some("failed"), Some(2)));
    assert!(case["broken"].as_str().unwrap().contains("no update is lost"), "{case}");
    assert!(!case["after"].as_array().unwrap().is_empty(), "{case}");

    // The process that is killed is this program with this backend.
    let (output, said) = check(&["--case", "a_kill_loses_nothing_durable"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("was killed") && said.contains("0 passed, 2 failed"), "{said}");

    let (output, said) = check(&["--case", "inverted_ranges_are_empty"]);
    assert_eq!(output.status.code(), Some(0), "{said}");

    let notes = fs::read_to_string(data.join("notes")).unwrap();
    for line in notes.lines() {
        let name = line.split(' ').next_back().unwrap();
        assert_eq!(notes.matches(&format!("removed {name}\n")).count(), 1, "{name} is removed once");
    }
    let left: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes"]);
}
