//! `storage copy` between all backends for trackers and peers, including interrupted copies.

use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use enjambre_core::protocol::message::StoreStatus;
use enjambre_core::{CatalogueId, Dialer, FileRecord, Provider};
use enjambre_swarm::tracker_client::client::TrackerClient;
use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of, read_tree, write_tree};
use enjambre_tests::mount::Mount;
use enjambre_tests::node::World;
use enjambre_tests::postgres::{Server, fresh_schema};
use enjambre_tests::process::{Output, Process};
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::{TIMEOUT, wait_until};
use enjambre_transport::settings::TransportSettings;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The backends that need no server.
const EMBEDDED: [&str; 2] = ["sled", "sqlite"];

/// A backend and the settings in its configuration table.
#[derive(Debug, Clone)]
struct Backend {
    name: &'static str,
    table: Vec<(&'static str, String)>,
}

fn embedded(name: &'static str) -> Backend {
    Backend { name, table: Vec::new() }
}

/// Returns all available backends.
fn backends(server: Option<&Server>) -> Vec<Backend> {
    let mut all = EMBEDDED.map(embedded).to_vec();
    all.extend(server.map(|server| Backend {
        name: "postgres",
        table: vec![("url", server.url()), ("schema", fresh_schema())],
    }));
    all
}

impl Backend {
    /// Returns the `KEY=VALUE` settings of a node with this backend.
    fn settings(&self) -> Vec<String> {
        let table = self.table.iter().map(|(key, value)| format!("storage.{}.{key}=\"{value}\"", self.name));
        table.chain([format!("storage.backend=\"{}\"", self.name)]).collect()
    }
}

/// Pairs every backend with its successor, and the last one with the first.
fn moves(all: &[Backend]) -> impl Iterator<Item = (&Backend, &Backend)> {
    all.iter().zip(all.iter().cycle().skip(1))
}

/// Writes a configuration for `storage copy`.
fn write_config(folder: &Path, name: &str, kind: &str, data_dir: &str, storage: &Backend, rest: &str) {
    let Backend { name: backend, table } = storage;
    let table: String = table.iter().map(|(key, value)| format!("{key} = \"{value}\"\n")).collect();
    let text = format!(
        "[{kind}]\ndata_dir = \"{data_dir}\"\n[storage]\nbackend = \"{backend}\"\n[storage.{backend}]\n{table}{rest}\n"
    );
    fs::write(folder.join(name), text).unwrap();
}

fn copy(folder: &Path, options: &[&str]) -> Output {
    let arguments = ["storage", "copy", "--from", "from.toml", "--to", "to.toml"];
    let mut command = Command::new(binary::enjambre());
    command.args(arguments).args(options).current_dir(folder);
    Process::start_command(folder, command).wait(TIMEOUT)
}

/// All replies of a tracker to read requests.
#[derive(Debug, PartialEq, Eq)]
struct Replies {
    catalogue: CatalogueId,
    list: Vec<FileRecord>,
    found: Vec<FileRecord>,
    providers: Vec<Vec<Provider>>,
    files: u64,
    peers: u64,
    store: Option<StoreStatus>,
}

/// Sends all read requests to a tracker, and returns the replies.
fn read_all(endpoint: &str) -> Option<Replies> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let requests = async {
        let shared = enjambre_transport::Shared::new(TransportSettings::default()).unwrap();
        let dialer = Dialer::new(vec![shared.tcp(), shared.zmq()]);
        let client = TrackerClient::new(Arc::new(dialer), endpoint.parse().unwrap());
        let list = client.list("", None, 1000).await.ok()?.0;
        let (mut found, mut providers) = (Vec::new(), Vec::new());
        for file in &list {
            found.push(client.find(&file.id.to_string()).await.ok()?);
            found.push(client.find(file.name.as_str()).await.ok()?);
            let mut file_providers = client.providers(&file.id).await.ok()?;
            file_providers.sort_by_key(|provider| *provider.peer.as_bytes());
            providers.push(file_providers);
        }
        let status = client.status().await.ok()?;
        let catalogue = client.catalogue().await.ok()?;
        let (files, peers, store) = (status.files, status.peers, status.store);
        Some(Replies { catalogue, list, found, providers, files, peers, store })
    };
    let replies = runtime.block_on(requests);
    runtime.shutdown_background();
    replies
}

#[test]
fn tracker_copy_to_any_backend_is_equivalent() {
    let server = Server::shared("a tracker copied to PostgreSQL and back");
    let all = backends(server.as_deref());
    let world = World::new(Setup { backend: EMBEDDED[0], ..Setup::default() });
    let settings = ["tracker.lease=\"1h\"", "tracker.store.enabled=true"];
    let mut tracker = world.tracker_with("tracker", &settings);
    let mut a = world.running_peer("a", &[&tracker]);
    let mut b = world.running_peer("b", &[&tracker]);
    for (name, size) in [("film.bin", 700_000), ("pinned.bin", 3 * MIB + 1), ("small.bin", 10)] {
        let (file, _) = world.file(name, size);
        a.publish(&file, if name == "pinned.bin" { &["--pin"] } else { &[] });
    }
    let (second, _) = world.file("second", 300_000);
    a.publish(&second, &["--name", "film.bin"]);
    fs::create_dir(world.path("folder")).unwrap();
    write_tree(&world.path("folder"), 1);
    a.publish(&world.path("folder"), &[]);
    b.get_to("film.bin", &world.path("got"));
    b.wait_providers("film.bin", 2, TIMEOUT);
    b.wait_providers("pinned.bin", 2, TIMEOUT);
    // Killed peers remain providers until their leases expire.
    a.kill();
    b.kill();
    let before = read_all(tracker.endpoint()).unwrap();
    assert_eq!(before.list.len(), 5, "expected two versions of one name and three other files: {before:?}");
    assert!(before.peers >= 2 && before.store.unwrap().pins == 1, "{before:?}");

    let folder = tracker.folder().to_owned();
    let mut old = "data".to_owned();
    for (number, (from, to)) in moves(&all).enumerate() {
        tracker.stop(Signal::TERM, TIMEOUT).ok();
        // The first copy stays in the data directory, like a copy that only changes the backend.
        let new = if number == 0 { old.clone() } else { format!("moved{number}") };
        write_config(&folder, "from.toml", "tracker", &old, from, "[tracker.store]\nenabled = true");
        write_config(&folder, "to.toml", "tracker", &new, to, "[tracker.store]\nenabled = true");
        let done = copy(&folder, &["--verify"]).ok();
        assert!(done.stdout.contains("copied and compared"), "{}", done.stdout);
        to.settings().iter().for_each(|setting| tracker.set(setting));
        tracker.set(&format!("tracker.data_dir=\"{new}\""));
        tracker.start();
        // The tracker announces its replicas a moment after it is ready.
        wait_until(&format!("identical replies, {from:?} to {to:?}: {before:?}"), TIMEOUT, || {
            read_all(tracker.endpoint()).filter(|after| *after == before)
        });
        old = new;
    }
    // The only provider of the pinned file is the tracker.
    let c = world.peer("c", &[&tracker]);
    c.get_to("pinned.bin", &world.path("copy"));
    assert_eq!(hash_of(&world.path("copy")), hash_of(&world.path("pinned.bin")));
}

#[test]
fn peer_copy_to_any_backend_keeps_content() {
    let server = Server::shared("a peer copied to PostgreSQL and back");
    let all = backends(server.as_deref());
    let (sled, sqlite) = (embedded("sled"), embedded("sqlite"));
    let world = World::new(Setup { backend: EMBEDDED[0], ..Setup::default() });
    let tracker = world.tracker("tracker");
    let mut a = world.peer("a", &[&tracker]);
    let (file, hash) = world.file("film.bin", 5 * MIB + 3);
    fs::create_dir(world.path("folder")).unwrap();
    write_tree(&world.path("folder"), 1);
    a.publish(&file, &["--copy"]);
    a.publish(&world.path("folder"), &["--copy"]);
    let (linked, _) = world.file("linked.bin", 300_000);
    a.publish(&linked, &[]);
    let before = a.run(["library", "--json"]).ok().stdout;
    let folder = a.folder().to_owned();
    let library = |content: &str| format!("[library]\ncontent = \"{content}\"");
    // Two more copies move the content to plain files and back.
    let stages = moves(&all).map(|(from, to)| (from, to, "database", "database"));
    let stages = stages.chain([(&sled, &sqlite, "database", "files"), (&sqlite, &sled, "files", "database")]);
    let mut old = "data".to_owned();
    for (number, (from, to, from_content, to_content)) in stages.enumerate() {
        let new = format!("moved{number}");
        write_config(&folder, "from.toml", "peer", &old, from, &library(from_content));
        write_config(&folder, "to.toml", "peer", &new, to, &library(to_content));
        copy(&folder, if number == 0 { &[] } else { &["--verify"] }).ok();
        to.settings().iter().for_each(|setting| a.set(setting));
        a.set(&format!("peer.data_dir=\"{new}\""));
        a.set(&format!("library.content=\"{to_content}\""));
        let after = a.run(["library", "--json"]).ok().stdout;
        let location = |text: &str| text.replace("\"files\"", "\"database\"");
        assert_eq!(location(&after), location(&before), "{from:?} to {to:?}");
        let verified = a.run(["verify"]).ok().stdout;
        assert!(verified.lines().all(|line| line.contains("valid")), "{verified}");
        old = new;
    }
    a.start();
    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
    b.get_to("folder", &world.path("got"));
    assert_eq!(read_tree(&world.path("got")), read_tree(&world.path("folder")));
}

/// Starts a copy and returns its events. A small buffer keeps it only a few lines ahead of the reader.
fn start_copy(folder: &Path) -> (Child, impl Iterator<Item = Value>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    set_socket_send_buffer_size(&theirs, 4096).unwrap();
    let child = Command::new(binary::enjambre())
        .args(["storage", "copy", "--from", "from.toml", "--to", "to.toml", "--json"])
        .current_dir(folder)
        .env("XDG_CONFIG_HOME", folder.join("no-user-config"))
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let lines = BufReader::with_capacity(128, ours).lines().map(Result::unwrap);
    (child, lines.map(|line| serde_json::from_str(&line).unwrap()))
}

/// Whether an event reports at least this number of copied bytes.
fn is_past(event: &Value, bytes: u64) -> bool {
    event["done"].as_u64().is_some_and(|done| done >= bytes)
}

/// Starts a copy and kills it after it has recorded the progress of some content.
fn kill_copy(folder: &Path) {
    let (mut child, mut events) = start_copy(folder);
    // The events end if the copy completes.
    let progressed = events.any(|event| is_past(&event, 18 * MIB));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(progressed);
}

#[test]
fn killed_copy_resumes_and_locks_target() {
    let world = World::new(Setup { backend: EMBEDDED[0], ..Setup::default() });
    let tracker = world.tracker("tracker");
    let mut a = world.peer("a", &[&tracker]);
    let (file, hash) = world.file("film.bin", 48 * MIB);
    a.publish(&file, &["--copy"]);
    let folder = a.folder().to_owned();
    let all = EMBEDDED.map(embedded);
    let mut old = "data".to_owned();
    for (number, (from, to)) in moves(&all).enumerate() {
        let new = format!("moved{number}");
        write_config(&folder, "from.toml", "peer", &old, from, "");
        write_config(&folder, "to.toml", "peer", &new, to, "");
        kill_copy(&folder);

        // In the second round the source changes, which invalidates the progress of the copy.
        let used = number == 1;
        if used {
            a.publish(&world.file("late.bin", 400_000).0, &["--copy"]);
        }
        to.settings().iter().for_each(|setting| a.set(setting));
        a.set(&format!("peer.data_dir=\"{new}\""));
        for command in [&["library"][..], &["peer"], &["storage", "stats"]] {
            let refused = a.run(command).expect_status(1);
            assert!(refused.stderr.contains("incomplete copy"), "{}", refused.stderr);
        }
        let done = copy(&folder, &["--json", "--verify"]).ok();
        let first = done.json()[0]["done"].as_u64().unwrap();
        assert_eq!((16 * MIB..48 * MIB).contains(&first), !used, "resumed at {first}");
        let all = if used { 48 * MIB + 400_000 } else { 48 * MIB };
        assert_eq!(done.json().last().unwrap()["piece_bytes"], all);
        let verified = a.run(["verify"]).ok().stdout;
        assert!(verified.contains("valid") && !verified.contains("missing"), "{verified}");

        let refused = copy(&folder, &[]).expect_status(1);
        assert!(
            refused.stderr.contains("not empty") && refused.stderr.contains("--force"),
            "{}",
            refused.stderr
        );
        copy(&folder, &["--force"]).ok();
        old = new;
    }
    a.start();
    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
}

#[test]
fn interrupted_copy_resumes() {
    let world = World::new(Setup { backend: "sled", ..Setup::default() });
    let tracker = world.tracker("tracker");
    let a = world.peer("a", &[&tracker]);
    a.publish(&world.file("film.bin", 48 * MIB).0, &["--copy"]);
    let folder = a.folder().to_owned();
    write_config(&folder, "from.toml", "peer", "data", &embedded("sled"), "");
    write_config(&folder, "to.toml", "peer", "new", &embedded("sqlite"), "");
    let (mut child, mut events) = start_copy(&folder);
    // The copy records its progress every 16 MiB.
    assert!(events.by_ref().any(|event| is_past(&event, 18 * MIB)));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let last = events.last().unwrap();
    assert_eq!(last["event"], "error", "{last}");
    assert!(last["message"].as_str().unwrap().contains("run the command again to resume"), "{last}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let done = copy(&folder, &["--verify", "--json"]).ok().json();
    assert!(is_past(&done[0], 16 * MIB), "{}", done[0]);
    assert_eq!(done.last().unwrap()["verified"], true);
}

#[test]
fn copy_to_full_disk_resumes_with_free_space() {
    for backend in EMBEDDED {
        let Some(disk) = Mount::in_memory("a copy to a full disk", 320 * MIB) else { return };
        let world = World::new(Setup { backend: EMBEDDED[0], ..Setup::default() });
        let tracker = world.tracker("tracker");
        let mut a = world.peer("a", &[&tracker]);
        let (file, hash) = world.file("film.bin", 24 * MIB);
        a.publish(&file, &["--copy"]);
        let folder = a.folder().to_owned();
        let new = disk.path().join("new").display().to_string();
        write_config(&folder, "from.toml", "peer", "data", &embedded(EMBEDDED[0]), "");
        write_config(&folder, "to.toml", "peer", &new, &embedded(backend), "");
        let ballast = disk.fill(24 * MIB);
        let stderr = copy(&folder, &[]).expect_status(1).stderr;
        assert!(stderr.contains("no space left on the disk"), "{stderr}");
        drop(ballast);
        copy(&folder, &["--verify"]).ok();
        a.set(&format!("storage.backend=\"{backend}\""));
        a.set(&format!("peer.data_dir={new:?}"));
        a.get_to("film.bin", &world.path("got.bin"));
        assert_eq!(hash_of(&world.path("got.bin")), hash);
    }
}

#[test]
fn copy_repairs_damaged_or_changed_target() {
    let world = World::new(Setup { backend: "sled", ..Setup::default() });
    let tracker = world.tracker("tracker");
    let mut a = world.peer("a", &[&tracker]);
    let (film, hash) = world.file("film.bin", 48 * MIB);
    a.publish(&film, &["--copy"]);
    let folder = a.folder().to_owned();
    let content = folder.join("new/content").join(&hash[..2]).join(&hash);
    let to = |content: &str| {
        let rest = format!("[library]\ncontent = \"{content}\"");
        write_config(&folder, "to.toml", "peer", "new", &embedded("sqlite"), &rest);
    };
    write_config(&folder, "from.toml", "peer", "data", &embedded("sled"), "");

    // Content that was copied to a database is copied again to plain files.
    to("database");
    kill_copy(&folder);
    to("files");
    kill_copy(&folder);
    assert_eq!(
        fs::read(&content).unwrap()[..64],
        fs::read(&film).unwrap()[..64],
        "the first piece is missing"
    );

    // Change a byte of content that the copy has recorded as complete.
    let file = fs::File::options().read(true).write(true).open(&content).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5).unwrap();
    file.write_all_at(&[!byte[0]], 5).unwrap();
    let wrong = copy(&folder, &["--verify"]).expect_status(1);
    assert!(wrong.stderr.contains("run the copy again") && wrong.stderr.contains(&hash), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("enjambre verify"), "{}", wrong.stderr);
    let done = copy(&folder, &["--verify", "--json"]).ok().json();
    assert!(!is_past(&done[0], 1), "the copy resumed at {}", done[0]);
    assert_eq!(
        fs::read_dir(folder.join("new/content")).unwrap().count(),
        1,
        "the target contains more than the content"
    );
    a.set("storage.backend=\"sqlite\"");
    a.set("peer.data_dir=\"new\"");
    a.set("library.content=\"files\"");
    let verified = a.run(["verify"]).ok().stdout;
    assert!(verified.contains("valid") && !verified.contains("missing"), "{verified}");

    // A copy that only changes the backend shares the content and verifies it.
    write_config(&folder, "from.toml", "peer", "new", &embedded("sqlite"), "[library]\ncontent = \"files\"");
    write_config(&folder, "to.toml", "peer", "new", &embedded("sled"), "[library]\ncontent = \"files\"");
    fs::OpenOptions::new().write(true).open(&content).unwrap().write_all_at(&[!byte[0]], 5).unwrap();
    let wrong = copy(&folder, &["--verify"]).expect_status(1);
    assert!(
        wrong.stderr.contains("shared content is damaged") && wrong.stderr.contains(&hash),
        "{}",
        wrong.stderr
    );
    fs::OpenOptions::new().write(true).open(&content).unwrap().write_all_at(&byte, 5).unwrap();
    copy(&folder, &["--verify"]).ok();
}

#[test]
fn refused_copy_target_gets_no_key() {
    let world = World::new(Setup { backend: "sled", ..Setup::default() });
    let tracker = world.tracker("tracker");
    let (a, b) = (world.peer("a", &[&tracker]), world.peer("b", &[&tracker]));
    a.publish(&world.file("one.bin", 10).0, &["--copy"]);
    b.publish(&world.file("two.bin", 10).0, &["--copy"]);
    let folder = a.folder().to_owned();
    let target = b.folder().join("data");
    fs::remove_file(target.join("key")).unwrap();
    write_config(&folder, "from.toml", "peer", "data", &embedded("sled"), "");
    write_config(&folder, "to.toml", "peer", target.to_str().unwrap(), &embedded("sled"), "");
    let refused = copy(&folder, &[]).expect_status(1);
    assert!(refused.stderr.contains("not empty"), "{}", refused.stderr);
    assert!(!target.join("key").exists());
    copy(&folder, &["--force"]).ok();
    assert_eq!(fs::read(target.join("key")).unwrap(), fs::read(folder.join("data/key")).unwrap());
}

#[test]
fn unsupported_copies_are_refused() {
    let world = World::new(Setup { backend: "sled", ..Setup::default() });
    let mut tracker = world.tracker("tracker");
    let folder = tracker.folder().to_owned();
    let refused = |status, words: &[&str]| {
        let output = copy(&folder, &[]).expect_status(status);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
        for word in words {
            assert!(output.stderr.contains(word), "{word} is missing: {}", output.stderr);
        }
    };
    write_config(&folder, "from.toml", "tracker", "data", &embedded("sled"), "");
    write_config(&folder, "to.toml", "tracker", "new", &embedded("sqlite"), "");
    refused(1, &["in use", "data"]);
    tracker.stop(Signal::TERM, TIMEOUT).ok();
    write_config(&folder, "to.toml", "tracker", "data", &embedded("sled"), "");
    refused(2, &["same database"]);
    write_config(&folder, "to.toml", "peer", "new", &embedded("sqlite"), "");
    refused(2, &["[tracker]"]);
    write_config(&folder, "to.toml", "tracker", "memory", &embedded("memory"), "");
    refused(1, &["memory", "does not keep its data"]);
    write_config(&folder, "from.toml", "tracker", "absent", &embedded("sled"), "");
    refused(3, &["absent"]);
    // A copy does not overwrite the data directory of another node.
    write_config(&folder, "from.toml", "tracker", "data", &embedded("sled"), "");
    write_config(&folder, "to.toml", "tracker", "other", &embedded("sqlite"), "");
    DirBuilder::new().mode(0o700).create(folder.join("other")).unwrap();
    fs::write(folder.join("other/key"), [7; 32]).unwrap();
    fs::set_permissions(folder.join("other/key"), fs::Permissions::from_mode(0o600)).unwrap();
    refused(1, &["another key", "other"]);
}
