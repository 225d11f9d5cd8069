//! A tracker and a peer move from one storage to another and back, and are what they were; also when the copy is killed.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use enjambre_core::model::record::{FileRecord, Provider};
use enjambre_core::protocol::message::{CatalogueId, StoreStatus};
use enjambre_core::tracker::client::TrackerClient;
use enjambre_core::transport::dialer::Dialer;
use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of, read_tree, write_tree};
use enjambre_tests::mount::Mount;
use enjambre_tests::node::{Setup, World};
use enjambre_tests::postgres::{Server, fresh_schema};
use enjambre_tests::process::{Output, Process};
use enjambre_tests::wait::{LONG, wait_until};
use enjambre_transport::settings::TransportSettings;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The backends of which every machine has what they need.
const EMBEDDED: [&str; 2] = ["sled", "sqlite"];

/// A storage to move through.
#[derive(Debug, Clone)]
struct Through {
    backend: &'static str,
    /// What its table in the configuration says.
    table: Vec<(&'static str, String)>,
}

fn embedded(backend: &'static str) -> Through {
    Through { backend, table: Vec::new() }
}

/// What everything moves through, and back to the first. One more backend is one more line.
fn everything(server: Option<&Server>) -> Vec<Through> {
    let mut all = EMBEDDED.map(embedded).to_vec();
    all.extend(server.map(|server| Through {
        backend: "postgres",
        table: vec![("url", server.url()), ("schema", fresh_schema())],
    }));
    all
}

impl Through {
    /// What a node is started with to have this storage.
    fn settings(&self) -> Vec<String> {
        let table =
            self.table.iter().map(|(key, value)| format!("storage.{}.{key}=\"{value}\"", self.backend));
        table.chain([format!("storage.backend=\"{}\"", self.backend)]).collect()
    }
}

/// Each with the one that comes after it.
fn moves(all: &[Through]) -> impl Iterator<Item = (&Through, &Through)> {
    all.iter().zip(all.iter().cycle().skip(1))
}

/// Writes a configuration for `storage copy` into a folder.
fn write_config(folder: &Path, name: &str, kind: &str, data_dir: &str, storage: &Through, rest: &str) {
    let Through { backend, table } = storage;
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
    Process::start_command(folder, command).wait(LONG)
}

/// Everything that a tracker answers to everybody.
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

/// Asks the tracker for all that it knows.
fn ask_everything(endpoint: &str) -> Option<Replies> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asking = async {
        let shared = enjambre_transport::Shared::new(TransportSettings::default()).unwrap();
        let dialer = Dialer::new(vec![shared.tcp(), shared.zmq()]);
        let client = TrackerClient::new(Arc::new(dialer), endpoint.parse().unwrap());
        let list = client.list("", None, 1000).await.ok()?.0;
        let (mut found, mut providers) = (Vec::new(), Vec::new());
        for file in &list {
            found.push(client.find(&file.id.to_string()).await.ok()?);
            found.push(client.find(file.name.as_str()).await.ok()?);
            let mut offering = client.providers(&file.id).await.ok()?;
            offering.sort_by_key(|provider| *provider.peer.as_bytes());
            providers.push(offering);
        }
        let status = client.status().await.ok()?;
        let catalogue = client.catalogue().await.ok()?;
        let (files, peers, store) = (status.files, status.peers, status.store);
        Some(Replies { catalogue, list, found, providers, files, peers, store })
    };
    let replies = runtime.block_on(asking);
    runtime.shutdown_background();
    replies
}

#[test]
fn a_tracker_answers_alike_wherever_its_storage_is() {
    let server = Server::shared("a tracker that moves to PostgreSQL and back");
    let all = everything(server.as_deref());
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
    b.wait_providers("film.bin", 2, LONG);
    b.wait_providers("pinned.bin", 2, LONG);
    // Killed, they count as alive as long as their leases last.
    a.kill();
    b.kill();
    let before = ask_everything(tracker.endpoint()).unwrap();
    assert_eq!(before.list.len(), 5, "two versions of one name, and three others: {before:?}");
    assert!(before.peers >= 2 && before.store.unwrap().pins == 1, "{before:?}");

    let folder = tracker.folder().to_owned();
    let mut old = "data".to_owned();
    for (number, (from, to)) in moves(&all).enumerate() {
        tracker.stop(Signal::TERM, LONG).ok();
        // The first move stays in the data folder, as it is where only the backend is changed.
        let new = if number == 0 { old.clone() } else { format!("moved{number}") };
        write_config(&folder, "from.toml", "tracker", &old, from, "[tracker.store]\nenabled = true");
        write_config(&folder, "to.toml", "tracker", &new, to, "[tracker.store]\nenabled = true");
        let done = copy(&folder, &["--verify"]).ok();
        assert!(done.stdout.contains("read back and compared"), "{}", done.stdout);
        to.settings().iter().for_each(|setting| tracker.set(setting));
        tracker.set(&format!("tracker.data_dir=\"{new}\""));
        tracker.start();
        // The tracker's own copies are offered a moment after it answers.
        wait_until(&format!("the tracker answers alike, {from:?} to {to:?}: {before:?}"), LONG, || {
            ask_everything(tracker.endpoint()).filter(|after| *after == before)
        });
        old = new;
    }
    // What was pinned is fetched from the tracker, since nobody else is there any more.
    let c = world.peer("c", &[&tracker]);
    c.get_to("pinned.bin", &world.path("copy"));
    assert_eq!(hash_of(&world.path("copy")), hash_of(&world.path("pinned.bin")));
}

#[test]
fn a_peer_has_its_content_wherever_its_storage_is() {
    let server = Server::shared("a peer that moves to PostgreSQL and back");
    let all = everything(server.as_deref());
    let (sled, sqlite) = (embedded("sled"), embedded("sqlite"));
    let world = World::new(Setup { backend: EMBEDDED[0], ..Setup::default() });
    let tracker = world.tracker("tracker");
    let mut a = world.peer("a", &[&tracker]);
    let (file, hash) = world.file("film.bin", 5 * MIB + 3);
    fs::create_dir(world.path("folder")).unwrap();
    write_tree(&world.path("folder"), 1);
    a.publish(&file, &["--store"]);
    a.publish(&world.path("folder"), &["--store"]);
    let (linked, _) = world.file("linked.bin", 300_000);
    a.publish(&linked, &[]);
    let before = a.run(["library", "--json"]).ok().stdout;
    let folder = a.folder().to_owned();
    let with = |content: &str| format!("[library]\ncontent = \"{content}\"");
    // In plain files for a while, too.
    let stages = moves(&all).map(|(from, to)| (from, to, "database", "database"));
    let stages = stages.chain([(&sled, &sqlite, "database", "files"), (&sqlite, &sled, "files", "database")]);
    let mut old = "data".to_owned();
    for (number, (from, to, from_content, to_content)) in stages.enumerate() {
        let new = format!("moved{number}");
        write_config(&folder, "from.toml", "peer", &old, from, &with(from_content));
        write_config(&folder, "to.toml", "peer", &new, to, &with(to_content));
        copy(&folder, if number == 0 { &[] } else { &["--verify"] }).ok();
        to.settings().iter().for_each(|setting| a.set(setting));
        a.set(&format!("peer.data_dir=\"{new}\""));
        a.set(&format!("library.content=\"{to_content}\""));
        let after = a.run(["library", "--json"]).ok().stdout;
        let location = |text: &str| text.replace("\"files\"", "\"database\"");
        assert_eq!(location(&after), location(&before), "{from:?} to {to:?}");
        let verified = a.run(["verify"]).ok().stdout;
        assert!(verified.lines().all(|line| line.contains("right")), "{verified}");
        old = new;
    }
    a.start();
    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
    b.get_to("folder", &world.path("got"));
    assert_eq!(read_tree(&world.path("got")), read_tree(&world.path("folder")));
}

/// Starts a copy that can tell only a few lines ahead of its reader; gives what it tells.
fn start_copy(folder: &Path) -> (Child, impl Iterator<Item = Value>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    set_socket_send_buffer_size(&theirs, 4096).unwrap();
    let child = Command::new(binary::enjambre())
        .args(["storage", "copy", "--from", "from.toml", "--to", "to.toml", "--json"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let lines = BufReader::with_capacity(128, ours).lines().map(Result::unwrap);
    (child, lines.map(|line| serde_json::from_str(&line).unwrap()))
}

/// Whether so many bytes or more are copied.
fn is_past(event: &Value, bytes: u64) -> bool {
    event["done"].as_u64().is_some_and(|done| done >= bytes)
}

#[test]
fn a_copy_that_is_killed_goes_on_and_nothing_else_uses_the_half() {
    let world = World::new(Setup { backend: EMBEDDED[0], ..Setup::default() });
    let tracker = world.tracker("tracker");
    let mut a = world.peer("a", &[&tracker]);
    let (file, hash) = world.file("film.bin", 48 * MIB);
    a.publish(&file, &["--store"]);
    let folder = a.folder().to_owned();
    let all = EMBEDDED.map(embedded);
    let mut old = "data".to_owned();
    for (number, (from, to)) in moves(&all).enumerate() {
        let new = format!("moved{number}");
        write_config(&folder, "from.toml", "peer", &old, from, "");
        write_config(&folder, "to.toml", "peer", &new, to, "");
        let (mut child, mut events) = start_copy(&folder);
        // Where it never gets there, it ends and the events with it.
        let told = events.any(|event| is_past(&event, 18 * MIB));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(told);

        // The second time the source is used in between, and what was copied counts no more.
        let used = number == 1;
        if used {
            a.publish(&world.file("late.bin", 400_000).0, &["--store"]);
        }
        to.settings().iter().for_each(|setting| a.set(setting));
        a.set(&format!("peer.data_dir=\"{new}\""));
        for command in [&["library"][..], &["peer"], &["storage", "stats"]] {
            let refused = a.run(command).expect_status(1);
            assert!(refused.stderr.contains("not finished"), "{}", refused.stderr);
        }
        let done = copy(&folder, &["--json", "--verify"]).ok();
        let first = done.json()[0]["done"].as_u64().unwrap();
        assert_eq!((16 * MIB..48 * MIB).contains(&first), !used, "it goes on where it was: {first}");
        let all = if used { 48 * MIB + 400_000 } else { 48 * MIB };
        assert_eq!(done.json().last().unwrap()["piece_bytes"], all);
        let verified = a.run(["verify"]).ok().stdout;
        assert!(verified.contains("right") && !verified.contains("missing"), "{verified}");

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
fn a_copy_that_is_interrupted_says_so_and_goes_on() {
    let world = World::new(Setup { backend: "sled", ..Setup::default() });
    let tracker = world.tracker("tracker");
    let a = world.peer("a", &[&tracker]);
    a.publish(&world.file("film.bin", 48 * MIB).0, &["--store"]);
    let folder = a.folder().to_owned();
    write_config(&folder, "from.toml", "peer", "data", &embedded("sled"), "");
    write_config(&folder, "to.toml", "peer", "new", &embedded("sqlite"), "");
    let (mut child, mut events) = start_copy(&folder);
    // What it tells next is behind the first 16 MiB, of which it is noted that they are there.
    assert!(events.by_ref().any(|event| is_past(&event, 18 * MIB)));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let last = events.last().unwrap();
    assert_eq!(last["event"], "error", "{last}");
    assert!(last["message"].as_str().unwrap().contains("start it again and it goes on"), "{last}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let done = copy(&folder, &["--verify", "--json"]).ok().json();
    assert!(is_past(&done[0], 16 * MIB), "{}", done[0]);
    assert_eq!(done.last().unwrap()["verified"], true);
}

#[test]
fn a_copy_to_a_disk_without_room_says_so_and_goes_on_once_there_is_some() {
    for backend in EMBEDDED {
        let Some(disk) = Mount::in_memory("a copy to a disk without room", 320 * MIB) else { return };
        let world = World::new(Setup { backend: EMBEDDED[0], ..Setup::default() });
        let tracker = world.tracker("tracker");
        let mut a = world.peer("a", &[&tracker]);
        let (file, hash) = world.file("film.bin", 24 * MIB);
        a.publish(&file, &["--store"]);
        let folder = a.folder().to_owned();
        let new = disk.path().join("new").display().to_string();
        write_config(&folder, "from.toml", "peer", "data", &embedded(EMBEDDED[0]), "");
        write_config(&folder, "to.toml", "peer", &new, &embedded(backend), "");
        let ballast = disk.fill(24 * MIB);
        let said = copy(&folder, &[]).expect_status(1).stderr;
        assert!(said.contains("no room left on the disk") && said.contains("it goes on"), "{said}");
        drop(ballast);
        copy(&folder, &["--verify"]).ok();
        a.set(&format!("storage.backend=\"{backend}\""));
        a.set(&format!("peer.data_dir={new:?}"));
        a.get_to("film.bin", &world.path("got.bin"));
        assert_eq!(hash_of(&world.path("got.bin")), hash);
    }
}

/// Starts a copy and kills it once a part of the content is noted to be there.
fn cut_off(folder: &Path) {
    let (mut child, mut events) = start_copy(folder);
    let told = events.any(|event| is_past(&event, 18 * MIB));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told);
}

#[test]
fn a_target_that_was_damaged_or_changed_in_between_becomes_whole_all_the_same() {
    let world = World::new(Setup { backend: "sled", ..Setup::default() });
    let tracker = world.tracker("tracker");
    let mut a = world.peer("a", &[&tracker]);
    let (film, hash) = world.file("film.bin", 48 * MIB);
    a.publish(&film, &["--store"]);
    let folder = a.folder().to_owned();
    let content = folder.join("new/content").join(&hash[..2]).join(&hash);
    let to = |content: &str| {
        let rest = format!("[library]\ncontent = \"{content}\"");
        write_config(&folder, "to.toml", "peer", "new", &embedded("sqlite"), &rest);
    };
    write_config(&folder, "from.toml", "peer", "data", &embedded("sled"), "");

    // What was copied to a database is not in plain files.
    to("database");
    cut_off(&folder);
    to("files");
    cut_off(&folder);
    assert_eq!(fs::read(&content).unwrap()[..64], fs::read(&film).unwrap()[..64], "from the first piece on");

    // A byte of what is behind it is another one now.
    let file = fs::File::options().read(true).write(true).open(&content).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5).unwrap();
    file.write_all_at(&[!byte[0]], 5).unwrap();
    let wrong = copy(&folder, &["--verify"]).expect_status(1);
    assert!(
        wrong.stderr.contains("start the copy again") && wrong.stderr.contains(&hash),
        "{}",
        wrong.stderr
    );
    assert!(!wrong.stderr.contains("enjambre verify"), "{}", wrong.stderr);
    let done = copy(&folder, &["--verify", "--json"]).ok().json();
    assert!(!is_past(&done[0], 1), "nothing of it counts any more: {}", done[0]);
    assert_eq!(fs::read_dir(folder.join("new/content")).unwrap().count(), 1, "only the content stays there");
    a.set("storage.backend=\"sqlite\"");
    a.set("peer.data_dir=\"new\"");
    a.set("library.content=\"files\"");
    let verified = a.run(["verify"]).ok().stdout;
    assert!(verified.contains("right") && !verified.contains("missing"), "{verified}");

    // Where only the backend changes the content stays, and is proven there.
    write_config(&folder, "from.toml", "peer", "new", &embedded("sqlite"), "[library]\ncontent = \"files\"");
    write_config(&folder, "to.toml", "peer", "new", &embedded("sled"), "[library]\ncontent = \"files\"");
    fs::OpenOptions::new().write(true).open(&content).unwrap().write_all_at(&[!byte[0]], 5).unwrap();
    let wrong = copy(&folder, &["--verify"]).expect_status(1);
    assert!(wrong.stderr.contains("stays where it is") && wrong.stderr.contains(&hash), "{}", wrong.stderr);
    fs::OpenOptions::new().write(true).open(&content).unwrap().write_all_at(&byte, 5).unwrap();
    copy(&folder, &["--verify"]).ok();
}

#[test]
fn a_target_that_is_refused_gets_no_key() {
    let world = World::new(Setup { backend: "sled", ..Setup::default() });
    let tracker = world.tracker("tracker");
    let (a, b) = (world.peer("a", &[&tracker]), world.peer("b", &[&tracker]));
    a.publish(&world.file("one.bin", 10).0, &["--store"]);
    b.publish(&world.file("two.bin", 10).0, &["--store"]);
    let folder = a.folder().to_owned();
    let theirs = b.folder().join("data");
    fs::remove_file(theirs.join("key")).unwrap();
    write_config(&folder, "from.toml", "peer", "data", &embedded("sled"), "");
    write_config(&folder, "to.toml", "peer", theirs.to_str().unwrap(), &embedded("sled"), "");
    let refused = copy(&folder, &[]).expect_status(1);
    assert!(refused.stderr.contains("not empty"), "{}", refused.stderr);
    assert!(!theirs.join("key").exists());
    copy(&folder, &["--force"]).ok();
    assert_eq!(fs::read(theirs.join("key")).unwrap(), fs::read(folder.join("data/key")).unwrap());
}

#[test]
fn what_cannot_be_copied_is_said() {
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
    tracker.stop(Signal::TERM, LONG).ok();
    write_config(&folder, "to.toml", "tracker", "data", &embedded("sled"), "");
    refused(2, &["same database"]);
    write_config(&folder, "to.toml", "peer", "new", &embedded("sqlite"), "");
    refused(2, &["[tracker]"]);
    write_config(&folder, "to.toml", "tracker", "memory", &embedded("memory"), "");
    refused(1, &["memory", "forgot"]);
    write_config(&folder, "from.toml", "tracker", "nowhere", &embedded("sled"), "");
    refused(3, &["nowhere"]);
    // Another node's folder is not taken over.
    write_config(&folder, "from.toml", "tracker", "data", &embedded("sled"), "");
    write_config(&folder, "to.toml", "tracker", "other", &embedded("sqlite"), "");
    fs::create_dir(folder.join("other")).unwrap();
    fs::write(folder.join("other/key"), [7; 32]).unwrap();
    fs::set_permissions(folder.join("other/key"), fs::Permissions::from_mode(0o600)).unwrap();
    refused(1, &["another key", "other"]);
}

#[test]
fn what_is_in_the_databases_of_a_stopped_node_is_shown() {
    for backend in EMBEDDED {
        let world = World::new(Setup { backend, ..Setup::default() });
        let mut tracker = world.tracker("tracker");
        let a = world.peer("a", &[&tracker]);
        let (file, hash) = world.file("film.bin", 300_000);
        a.publish(&file, &["--store"]);
        let running = tracker.run(["storage", "stats"]).expect_status(1);
        assert!(running.stderr.contains("in use"), "{}", running.stderr);
        tracker.stop(Signal::TERM, LONG).ok();

        let stats = tracker.run(["storage", "stats", "--json"]).ok().json();
        assert_eq!(
            (&stats[0]["database"], stats[0]["spaces"]["files"]["entries"].as_u64()),
            (&"catalogue".into(), Some(1))
        );
        assert!(
            stats[0]["format"].as_u64().unwrap() >= 2 && stats[0]["free_bytes"].as_u64().is_some(),
            "{stats:?}"
        );
        let stats = a.run(["storage", "stats", "--json"]).ok().json();
        assert_eq!(stats[1]["database"], "content");
        assert!(stats[1]["bytes"].as_u64().unwrap() >= 300_000, "{stats:?}");
        assert!(a.run(["storage", "stats"]).ok().stdout.contains("library_files"));

        let dump = tracker.run(["storage", "dump"]).ok().json();
        let named = dump.iter().find(|record| record["space"] == "versions").unwrap();
        assert_eq!((&named["name"], &named["id"]), (&"film.bin".into(), &hash.as_str().into()));
        assert!(named["at"].as_str().unwrap().ends_with('Z'), "{named}");
        assert!(dump.iter().all(|record| record.get("damaged").is_none()), "{dump:?}");
        let session = dump.iter().find(|record| record["space"] == "sessions").unwrap();
        assert!(session["session"].as_str().unwrap().chars().count() < 12, "{session}");
        let parts = a.run(["storage", "dump", "--space", "content"]).ok().json();
        assert_eq!(parts.iter().map(|part| part["length"].as_u64().unwrap()).sum::<u64>(), 300_000);
        assert_eq!(a.run(["storage", "dump", "--limit", "3"]).ok().stdout.lines().count(), 3);
        let unknown = a.run(["storage", "dump", "--space", "nothing"]).expect_status(2);
        assert!(unknown.stderr.contains("library_acks"), "{}", unknown.stderr);

        // A reader that goes away is no failure.
        let mut command = Command::new("bash");
        command.args(["-c", "set -o pipefail; \"$0\" storage dump --config enjambre.toml | head -n 1"]);
        command.arg(binary::enjambre()).current_dir(tracker.folder());
        let head = Process::start_command(&world.path(""), command).wait(LONG).ok();
        assert_eq!((head.stdout.lines().count(), head.stderr.as_str()), (1, ""));
    }
}
