//! Nodes that were never started, or that lost their database, content or key.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tempfile::TempDir;

use super::{Run, assert_error, run_in};

#[test]
fn missing_database_is_refused_without_init() {
    let folder = TempDir::new().unwrap();
    let run = |arguments: &[&str], backend: &str| {
        let backend = format!("storage.backend={backend}");
        let set = ["--set", "peer.data_dir=data", "--set", &backend];
        run_in(folder.path(), &[arguments, &set].concat(), &[])
    };
    std::fs::create_dir(folder.path().join("data")).unwrap();
    assert_eq!(run(&["library"], "sqlite").status, 0);
    assert_eq!(run(&["library"], "sqlite").status, 0);
    for backend in ["sled", "memory"] {
        assert_error(&run(&["library"], backend), 1, &[backend, "empty", "--init"]);
    }
    // A start with --init that fails changes nothing.
    let database = folder.path().join("data/library.db");
    std::fs::write(&database, "damaged").unwrap();
    assert_error(&run(&["peer", "--init"], "sqlite"), 1, &["corrupt database"]);
    std::fs::remove_file(&database).unwrap();
    // The port is in use, or the peer would run until it is stopped.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("transport.listen=[\"tcp://{}\"]", taken.local_addr().unwrap());
    assert_error(&run(&["peer", "--set", &listen], "sqlite"), 1, &["sqlite", "--init"]);
    let peer = run(&["peer", "--init", "--set", &listen], "sqlite");
    assert!(peer.status == 1 && !peer.stderr.contains("--init"), "{}", peer.stderr);
    assert_eq!(run(&["library"], "sqlite").status, 0);
}

#[test]
fn missing_content_is_refused_without_init() {
    let stores = [
        ("database", "library-content.db", "content database (sqlite) is empty"),
        ("files", "content", "data/content is empty"),
    ];
    for (content, place, empty) in stores {
        let folder = TempDir::new().unwrap();
        let run = |arguments: &[&str]| {
            let content = format!("library.content={content}");
            let set = ["peer.data_dir=data", "peer.trackers=[\"tcp://127.0.0.1:1\"]", &content];
            let set = set.iter().flat_map(|setting| ["--set", setting]);
            run_in(folder.path(), &arguments.iter().copied().chain(set).collect::<Vec<_>>(), &[])
        };
        std::fs::write(folder.path().join("file"), "content").unwrap();
        let alone = "transport.listen=[\"tcp://127.0.0.1:0\"]";
        assert_error(&run(&["publish", "--copy", "file", "--set", alone]), 4, &["file is in the library"]);
        assert!(run(&["library", "--json"]).stdout.contains("\"available_pieces\":1"));
        let place = folder.path().join("data").join(place);
        if place.is_dir() { std::fs::remove_dir_all(place) } else { std::fs::remove_file(place) }.unwrap();
        assert_error(&run(&["library"]), 1, &[empty, "--init"]);
        // The port is in use, or the peer would run until it is stopped.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("transport.listen=[\"tcp://{}\"]", taken.local_addr().unwrap());
        let init = || run(&["peer", "--init", "--set", &listen]);
        // A start that replaces the key does not also accept the missing content, which no error has named yet.
        std::fs::remove_file(folder.path().join("data/key")).unwrap();
        assert_error(&init(), 1, &[empty, "--init"]);
        let peer = init();
        assert!(peer.status == 1 && !peer.stderr.contains("--init"), "{}", peer.stderr);
        let library = run(&["library", "--json"]);
        assert!(library.stdout.contains("\"available_pieces\":0"), "{} {}", library.stdout, library.stderr);
    }
}

#[test]
fn source_of_a_copy_within_a_data_directory_is_refused() {
    let folder = TempDir::new().unwrap();
    for backend in ["sqlite", "sled"] {
        let text = format!(
            "[peer]\ndata_dir = \"data\"\ntrackers = [\"tcp://127.0.0.1:1\"]\n[storage]\nbackend = \"{backend}\"\n\
             [transport]\nlisten = [\"tcp://127.0.0.1:0\"]\n"
        );
        std::fs::write(folder.path().join(backend), text).unwrap();
    }
    std::fs::write(folder.path().join("file"), "content").unwrap();
    let run = |arguments: &[&str]| run_in(folder.path(), arguments, &[]);
    let copy = |from, to| run(&["storage", "copy", "--from", from, "--to", to, "--force"]);
    assert_eq!(run(&["publish", "file", "--config", "sqlite"]).status, 4);
    assert_eq!(copy("sqlite", "sled").status, 0);
    assert_error(
        &run(&["library", "--config", "sqlite"]),
        1,
        &["sqlite storage is outdated", "sled", "--init"],
    );
    assert!(run(&["library", "--config", "sled"]).stdout.contains("file"));
    assert_eq!(copy("sled", "sqlite").status, 0);
    assert!(run(&["library", "--config", "sqlite"]).stdout.contains("file"));
    assert_error(&run(&["library", "--config", "sled"]), 1, &["sled storage is outdated"]);
}

/// Runs a command of an invite-only tracker with its data in `data`.
fn run_invite_only(folder: &Path, command: &[&str]) -> Run {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // The port is in use, or `tracker` would run until it is stopped.
    let listen = format!("transport.listen=[\"zmqs://{}\"]", taken.local_addr().unwrap());
    let set = ["tracker.data_dir=data", "swarm.admission=invite", &listen];
    let set = set.iter().flat_map(|setting| ["--set", setting]);
    run_in(folder, &command.iter().copied().chain(set).collect::<Vec<_>>(), &[])
}

#[test]
fn missing_catalogue_is_refused_without_a_new_authority() {
    let folder = TempDir::new().unwrap();
    let run = |command| run_invite_only(folder.path(), &[command]);
    assert_eq!(run("tracker").status, 1);
    for _ in 0..2 {
        assert_eq!(run("peers").status, 0);
    }
    std::fs::remove_file(folder.path().join("data/catalogue.db")).unwrap();
    assert_error(&run("peers"), 1, &["sqlite", "--init"]);
}

#[test]
fn tracker_that_was_never_started_has_no_swarm() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let commands = [
        &["peers"][..],
        &["invite"],
        &["invite", "--list"],
        &["revoke", "abcd"],
        &["reserve", "name", "abcd"],
        &["pins"],
        &["unpin", "name"],
        &["storage", "stats"],
    ];
    for command in commands {
        assert_error(&run_invite_only(folder.path(), command), 3, &["no node was ever started", "data"]);
    }
    assert!(!data.exists());
    // As created by an administrator.
    std::fs::DirBuilder::new().mode(0o700).create(&data).unwrap();
    for command in &commands[..commands.len() - 1] {
        assert_error(&run_invite_only(folder.path(), command), 3, &["no node was ever started", "data"]);
    }
    assert!(!data.join("key").exists() && !data.join("catalogue.db").exists());
}

#[test]
fn missing_key_is_refused_without_init() {
    for kind in ["tracker", "peer"] {
        let folder = TempDir::new().unwrap();
        let key = folder.path().join("data/key");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let config = format!(
            "[{kind}]\ndata_dir = \"data\"\n[transport]\nlisten = [\"tcp://{}\"]\n",
            taken.local_addr().unwrap()
        );
        std::fs::write(folder.path().join("x.toml"), &config).unwrap();
        std::fs::write(folder.path().join("to.toml"), config.replace("\"data\"", "\"copy\"")).unwrap();
        let run = |command: &[&str]| run_in(folder.path(), command, &[]);
        let start = |arguments: &[&str]| run(&[&[kind, "--config", "x.toml"], arguments].concat());
        // The port is in use, or the node would run until it is stopped.
        assert_error(&start(&[]), 1, &["transport.listen"]);
        let first = std::fs::read(&key).unwrap();
        std::fs::remove_file(&key).unwrap();
        let parts = ["data/key is missing", "backup", "--init"];
        assert_error(&start(&[]), 1, &parts);
        for command in [&["pins"][..], &["list"], &["status"], &["storage", "copy"]] {
            let files = match command {
                ["storage", _] => &["--from", "x.toml", "--to", "to.toml"][..],
                _ => &["--config", "x.toml"],
            };
            assert_error(&run(&[command, files].concat()), 1, &parts);
        }
        assert!(!key.exists());
        assert_error(&start(&["--init"]), 1, &["transport.listen"]);
        assert_ne!(std::fs::read(&key).unwrap(), first);
        assert_error(&start(&[]), 1, &["transport.listen"]);
    }
}
