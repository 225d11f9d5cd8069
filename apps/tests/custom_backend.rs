//! A program with a custom storage backend and a custom transport.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use enjambre::App;
use enjambre::registry::{InvalidLimit, Security};
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{Memory, Place, Role};
use parking_lot::Mutex;

#[derive(serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    colour: String,
}

#[test]
fn custom_backend_receives_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let opened = Arc::new(Mutex::new(Vec::new()));
    let run = |table: &str| {
        let mut app = App::new();
        let seen = Arc::clone(&opened);
        app.register_storage("mine", move |settings: Settings, place: Place, role: Role| {
            seen.lock().push((settings.colour, role, place.data_dir));
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
    assert_eq!(opened.lock().len(), 2, "the backend is not opened with an unknown key");
}

#[test]
fn custom_transport_receives_the_limits() {
    let folder = tempfile::tempdir().unwrap();
    let run = |is_registered: bool, limit: &str| {
        let mut app = App::named("mine", "1.0");
        if is_registered {
            app.register_transport("memory", Security::Authenticated, |parts| match parts.limits.in_flight {
                0..3 => Ok(MemoryNetwork::new().transport()),
                _ => Err(InvalidLimit { key: "in_flight".to_owned(), problem: "too many".to_owned() }),
            });
        }
        let data_dir = format!("peer.data_dir={}", folder.path().display());
        let listen = "transport.listen=[\"memory://127.0.0.1:1\"]";
        let arguments =
            ["mine", "library", "--set", &data_dir, "--set", listen, "--set", "storage.backend=memory"];
        let limit = ["--set", &format!("transport.limits.in_flight={limit}")];
        format!("{:?}", app.run(arguments.into_iter().chain(limit).map(OsString::from)))
    };
    assert_eq!(run(true, "2"), format!("{:?}", ExitCode::SUCCESS));
    for refused in [run(true, "3"), run(false, "2")] {
        assert_eq!(refused, format!("{:?}", ExitCode::from(2)));
    }
}
