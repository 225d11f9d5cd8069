//! A program with a storage backend of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use enjambre::App;
use enjambre::registry::Place;
use enjambre_core::storage::Role;
use enjambre_core::storage::memory::Memory;
use parking_lot::Mutex;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    colour: String,
}

#[test]
fn a_registered_backend_is_opened_with_its_own_table() {
    let folder = tempfile::tempdir().unwrap();
    let opened = Arc::new(Mutex::new(Vec::new()));
    let run = |table: &str| {
        let mut app = App::stock();
        let seen = Arc::clone(&opened);
        app.register_storage("mine", move |settings: Settings, place: Place| {
            seen.lock().push((settings.colour, place.role, place.data_dir));
            async { Ok(Arc::new(Memory::new()) as _) }
        });
        let data_dir = format!("peer.data_dir={}", folder.path().display());
        let arguments =
            ["program", "library", "--set", &data_dir, "--set", "storage.backend=mine", "--set", table];
        format!("{:?}", app.run(arguments.map(OsString::from)))
    };
    assert_eq!(run("storage.mine.colour=blue"), format!("{:?}", ExitCode::SUCCESS));
    let path = folder.path().canonicalize().unwrap();
    let expected = [Role::Records, Role::Content].map(|role| ("blue".to_owned(), role, path.clone()));
    assert_eq!(*opened.lock(), expected);
    assert_eq!(run("storage.mine.color=blue"), format!("{:?}", ExitCode::from(2)), "an unknown key");
    assert_eq!(opened.lock().len(), 2, "it was not opened with an unknown key");
}
