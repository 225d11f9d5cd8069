//! Downloads: resume, sharing, with and without a daemon, from linked, stored and changed files, and rate limits.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use enjambre_tests::binary;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process::Process;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// The maximum number of bytes that are downloaded again after `kill -9`.
const RESUME_LOSS: u64 = 16 * MIB;

fn done(event: &Value) -> Option<u64> {
    (event["event"] == "progress").then(|| event["done"].as_u64().expect("`done` is a number"))
}

fn wait_done(get: &mut Process, at_least: u64) -> u64 {
    get.wait_event(|event| done(event).filter(|done| *done >= at_least))
}

/// Returns the number of bytes that a killed `get` resumes with. A rate limit keeps the first progress event close to that
/// number. The command is killed again, and the limit is removed.
fn resume_offset(peer: &mut Peer, args: &[&str]) -> u64 {
    peer.set("limits.download=\"256KiB/s\"");
    let mut get = peer.spawn(args);
    let done = wait_done(&mut get, 1);
    get.kill();
    peer.set("limits.download=unlimited");
    done
}

#[test]
fn killed_get_resumes() {
    check_killed_get_resumes(World::default());
}

#[test]
fn killed_get_over_zmq_resumes() {
    check_killed_get_resumes(World::over(Wire::Zmq));
}

fn check_killed_get_resumes(world: World) {
    let size = 56 * MIB;
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let mut b = world.peer("b", &[&tracker]);
    b.set("limits.download=\"16MB/s\"");
    let mut get = b.spawn(["get", "film.bin", "--json"]);
    let killed_at = wait_done(&mut get, 28 * MIB);
    get.kill();
    let resumed_at = resume_offset(&mut b, &["get", "film.bin", "--json"]);
    assert!(resumed_at + RESUME_LOSS >= killed_at, "killed at {killed_at}, resumed at {resumed_at}");
    b.run(["get", "film.bin"]).ok();
    // A has also sent the bytes that were in buffers when the process was killed.
    let (sent, in_buffers) = (a.sent(), 10 * MIB);
    assert!(sent <= size + RESUME_LOSS + in_buffers, "{sent} bytes were sent for {size}");
    let exported = world.path("film");
    b.run(["export", "film.bin", "-o", exported.to_str().unwrap()]).ok();
    assert_eq!(hash_of(&exported), hash);
}

#[test]
fn killed_get_to_path_resumes() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 40 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let mut b = world.peer("b", &[&tracker]);
    let path = world.path("got.bin");
    let args = ["get", "film.bin", "--json", "-o", path.to_str().unwrap()];
    b.set("limits.download=\"16MB/s\"");
    let mut get = b.spawn(args);
    let killed_at = wait_done(&mut get, 24 * MIB);
    get.kill();
    assert!(!path.exists(), "the output exists before the download is complete");
    let resumed_at = resume_offset(&mut b, &args);
    assert!(resumed_at + RESUME_LOSS >= killed_at, "killed at {killed_at}, resumed at {resumed_at}");
    b.run(args).ok();
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn get_survives_death_of_its_daemon() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 24 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let mut b = world.running_peer_with("b", &[&tracker], &["limits.download=\"8MB/s\""]);
    let path = world.path("got.bin");
    let mut get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    wait_done(&mut get, 4 * MIB);
    b.kill();
    get.wait(TIMEOUT).ok();
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn concurrent_gets_share_one_download() {
    let world = World::default();
    let size = 12 * MIB;
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    for (name, with_daemon) in [("with", true), ("without", false)] {
        let sent_before = a.sent();
        let mut b = world.peer_with(name, &[&tracker], &["limits.download=\"6MB/s\""]);
        if with_daemon {
            b.start();
        }
        let paths = [world.path(format!("{name}-1.bin")), world.path(format!("{name}-2.bin"))];
        let mut first = b.spawn(["get", "film.bin", "--json", "-o", paths[0].to_str().unwrap()]);
        wait_done(&mut first, 1);
        let second = b.spawn(["get", "film.bin", "--json", "-o", paths[1].to_str().unwrap()]);
        first.wait(TIMEOUT).ok();
        second.wait(TIMEOUT).ok();
        for path in &paths {
            assert_eq!(hash_of(path), hash);
        }
        // No request failed, so each piece is sent once; a few may be requested twice at the end.
        let sent = a.sent() - sent_before;
        assert!((size..size + 4 * MIB).contains(&sent), "{sent} bytes were sent for {size}, {name} daemon");
    }
}

#[test]
fn get_without_daemon_leaves_when_complete() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 3 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);

    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("got.bin"));
    assert_eq!(hash_of(&world.path("got.bin")), hash);
    assert_eq!(a.providers("film.bin"), Some(1), "only A provides the file");
}

#[test]
fn daemon_serves_file_downloaded_through_it() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 3 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.running_peer("b", &[&tracker]);
    b.run(["get", "film.bin", "--sync"]).ok();
    a.wait_providers("film.bin", 2, TIMEOUT);
    let library = b.in_library("film.bin").expect("the library contains the file");
    assert_eq!(library["path"], Value::Null, "{library}");
}

#[test]
fn existing_output_with_other_content_is_kept() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let path = world.path("mine.txt");
    fs::write(&path, "mine").unwrap();
    let args = ["get", "film.bin", "-o", path.to_str().unwrap()];
    a.run(args).expect_status(1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let b = world.peer("b", &[&tracker]);
    b.run(args).expect_status(1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    b.run(args.into_iter().chain(["--force"])).ok();
    assert_eq!(hash_of(&path), hash);
}

#[test]
fn changed_linked_file_is_withdrawn() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 4 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    OpenOptions::new().write(true).open(&file).unwrap().write_all_at(b"changed", 3 * MIB).unwrap();

    let b = world.peer_with("b", &[&tracker], &["download.provider_timeout=2s"]);
    let path = world.path("got.bin");
    b.run(["get", "film.bin", "-o", path.to_str().unwrap()]).expect_status(4);
    assert!(!path.exists());
    b.wait_providers("film.bin", 0, TIMEOUT);
}

#[test]
fn deleted_linked_file_is_withdrawn() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 4 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    fs::remove_file(&file).unwrap();

    let b = world.peer_with("b", &[&tracker], &["download.provider_timeout=2s"]);
    b.run(["get", "film.bin"]).expect_status(4);
    b.wait_providers("film.bin", 0, TIMEOUT);

    // The download state is kept, and the download completes when the file exists again.
    assert_eq!(world.file("film.bin", 4 * MIB).1, hash);
    a.publish(&file, &[]);
    b.run(["get", "film.bin"]).ok();
}

#[test]
fn stored_file_survives_deletion_of_original() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 4 * MIB);
    let tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &["--copy"]);
    fs::remove_file(&file).unwrap();
    let b = world.peer("b", &[&tracker]);
    b.get_to("film.bin", &world.path("b.bin"));
    assert_eq!(hash_of(&world.path("b.bin")), hash);
    a.kill();
    a.start();
    let c = world.peer("c", &[&tracker]);
    c.get_to("film.bin", &world.path("c.bin"));
    assert_eq!(hash_of(&world.path("c.bin")), hash);
}

#[test]
fn remove_keeps_linked_file_on_disk() {
    let world = World::default();
    let (file, hash) = world.file("film.bin", 2 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.running_peer("b", &[&tracker]);
    b.run(["get", "film.bin"]).ok();
    a.wait_providers("film.bin", 2, TIMEOUT);
    b.run(["remove", "film.bin"]).ok();
    assert_eq!(b.in_library("film.bin"), None);
    a.wait_providers("film.bin", 1, TIMEOUT);
    a.run(["remove", &hash]).ok();
    a.wait_providers("film.bin", 0, TIMEOUT);
    assert_eq!(hash_of(&file), hash);
}

#[test]
fn download_respects_rate_limit() {
    let world = World::default();
    let size = 8 * MIB;
    let (file, _) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer_with("a", &[&tracker], &["limits.upload=\"4MB/s\""]);
    a.publish(&file, &[]);
    let seconds = |output: &enjambre_tests::process::Output| {
        output.json().last().expect("there is a last event")["seconds"]
            .as_f64()
            .expect("`seconds` is a number")
    };
    // 8 MiB take 2.1 s at 4 MB/s. The bound allows a short initial burst; a slow machine only takes longer.
    let b = world.peer("b", &[&tracker]);
    let upload = seconds(&b.run(["get", "film.bin", "--json"]).ok());
    assert!(upload > 1.5, "{upload} s with an upload limit");
    let d = world.running_peer("d", &[&tracker]);
    d.publish(&file, &[]);
    let c = world.peer_with("c", &[&tracker], &["limits.download=\"4MB/s\""]);
    let download = seconds(&c.run(["get", "film.bin", "--json"]).ok());
    assert!(download > 1.5, "{download} s with a download limit");
}

#[test]
fn files_of_boundary_sizes_are_downloaded() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let b = world.running_peer("b", &[&tracker]);
    let piece = 256 * 1024;
    for size in [0, 1, piece - 1, piece, piece + 1, 2 * piece, 2 * piece + 1] {
        let name = format!("of-{size}-bytes");
        let (file, hash) = world.file(&name, size);
        a.publish(&file, &[]);
        assert_eq!(b.listed(&name).expect("the file is listed")["id"], hash.as_str());
        b.get_to(&name, &world.path(format!("got-{size}")));
        assert_eq!(hash_of(&world.path(format!("got-{size}"))), hash, "{size} bytes");
        b.run(["get", &hash]).ok();
    }
}

#[test]
fn find_returns_newest_version() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let (old, old_hash) = world.file("old", MIB);
    let (new, new_hash) = world.file("new", MIB + 1);
    a.publish(&old, &["--name", "film.bin"]);
    a.publish(&new, &["--name", "film.bin"]);
    let b = world.running_peer("b", &[&tracker]);
    let ids: Vec<_> = b.list().iter().map(|file| file["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, [new_hash.clone(), old_hash.clone()], "newest first");
    b.get_to("film.bin", &world.path("b.bin"));
    assert_eq!(hash_of(&world.path("b.bin")), new_hash);
    b.get_to(&old_hash, &world.path("old.bin"));
    assert_eq!(hash_of(&world.path("old.bin")), old_hash);
}

#[test]
fn last_output_of_interrupted_get_receives_the_file() {
    let world = World::default();
    let size = 40 * MIB;
    let (file, hash) = world.file("film.bin", size);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    for with_daemon in [false, true] {
        let sent = a.sent();
        let mut b = world.peer(&format!("b-{with_daemon}"), &[&tracker]);
        b.set("limits.download=\"16MB/s\"");
        if with_daemon {
            b.start();
        }
        let paths = ["first", "second"].map(|name| world.path(format!("{name}-{with_daemon}.bin")));
        let get =
            |path: &Path| ["get", "film.bin", "--json", "-o", path.to_str().unwrap()].map(str::to_owned);
        let mut interrupted = b.spawn(get(&paths[0]));
        wait_done(&mut interrupted, 16 * MIB);
        interrupted.kill();
        b.run(get(&paths[1])).ok();
        assert_eq!(hash_of(&paths[1]), hash);
        assert!(!paths[0].exists() && !paths[0].with_extension("bin.enjambre-part").exists());
        assert_eq!(b.in_library("film.bin").unwrap()["path"], paths[1].to_str().unwrap());
        let sent = a.sent() - sent;
        assert!(sent <= size + RESUME_LOSS + 10 * MIB, "{sent} bytes were sent for {size}");
        // The only copy is reported.
        let again = b.run(["get", "film.bin", "--json"]).ok();
        assert_eq!(again.json().last().unwrap()["path"], paths[1].to_str().unwrap());
    }
}

#[test]
fn get_writes_several_files_and_streams() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let texts = ["first", "second"].map(|name| {
        let path = world.path(name);
        fs::write(&path, format!("content of {name}\n")).unwrap();
        a.publish(&path, &[]);
        fs::read_to_string(path).unwrap()
    });
    let mut b = world.peer("b", &[&tracker]);
    for with_daemon in [false, true] {
        if with_daemon {
            b.start();
        }
        let dir = format!("{}/", world.path(format!("new/{with_daemon}")).display());
        b.run(["get", "first", "second", "-o", &dir]).ok();
        assert_eq!(fs::read_to_string(format!("{dir}first")).unwrap(), texts[0]);
        assert_eq!(fs::read_to_string(format!("{dir}second")).unwrap(), texts[1]);
        let single = format!("{}/", world.path(format!("single/{with_daemon}")).display());
        b.run(["get", "first", "-o", &single]).ok();
        assert_eq!(fs::read_to_string(format!("{single}first")).unwrap(), texts[0]);
        let streamed = b.run(["get", "first", "second", "-o", "-"]).ok();
        assert_eq!(streamed.stdout, texts.concat());
        b.run(["get", "first", "-o", "/dev/null"]).ok();
        let rest = format!("{}/", world.path(format!("rest/{with_daemon}")).display());
        b.run(["get", "missing", "first", "-o", &rest]).expect_status(3);
        assert_eq!(fs::read_to_string(format!("{rest}first")).unwrap(), texts[0]);
    }
}

#[test]
fn moved_output_directory_fails_get() {
    let world = World::default();
    let (file, _) = world.file("film.bin", 16 * MIB);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.running_peer_with("b", &[&tracker], &["limits.download=\"8MB/s\""]);
    let dir = world.path("dir");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("got.bin");
    let mut get = b.spawn(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]);
    wait_done(&mut get, MIB);
    fs::rename(&dir, world.path("elsewhere")).unwrap();
    get.wait(TIMEOUT).expect_status(1);
    assert!(!world.path("elsewhere/got.bin").exists());
}

#[test]
fn publish_reads_standard_input() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.run(["publish", "-"]).expect_status(2);
    let mut command = Command::new("sh");
    command.current_dir(a.folder()).arg("-c");
    command.arg("echo content | \"$0\" publish - --name text --config enjambre.toml").arg(binary::enjambre());
    Process::start_command(a.folder(), command).wait(TIMEOUT).ok();
    assert_eq!(a.run(["get", "text", "-o", "-"]).ok().stdout, "content\n");
    assert_eq!(a.in_library("text").unwrap()["content"], "database");
    a.run(["publish", "/dev/stdin"]).expect_status(2);
}

/// Starts a peer that has published the file `text` with the content `content`.
fn peer_with_text(world: &World, tracker: &Tracker) -> Peer {
    let peer = world.running_peer("a", &[tracker]);
    let text = peer.folder().join("text");
    fs::write(&text, "content").unwrap();
    peer.run(["publish", text.to_str().unwrap()]).ok();
    peer
}

#[test]
fn only_standard_output_is_written_as_an_open_file() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = peer_with_text(&world, &tracker);
    let get = |path: &str, number: u8| {
        let get = format!("\"$0\" get text -o {path} --config enjambre.toml");
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{{ printf 'before ' >&{number}; {get}; }} {number}> out"));
        command.arg(binary::enjambre()).current_dir(a.folder());
        let output = Process::start_command(a.folder(), command).wait(TIMEOUT);
        (output, fs::read_to_string(a.folder().join("out")).unwrap())
    };
    for path in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let (output, written) = get(path, 1);
        output.ok();
        assert_eq!(written, "before content", "{path}");
    }
    let (output, written) = get("/dev/fd/3", 3);
    assert!(output.expect_status(2).stderr.contains("`-o -`"));
    assert_eq!(written, "before ");
    let (output, written) = get("/dev/stderr", 2);
    output.expect_status(2);
    assert!(written.starts_with("before error: ") && written.contains("`-o -`"), "{written}");
    // A pipe has no offset that could differ.
    let mut command = Command::new("sh");
    command.args(["-c", "\"$0\" get text -o /dev/fd/3 --config enjambre.toml 3>&1 >/dev/null"]);
    command.arg(binary::enjambre()).current_dir(a.folder());
    assert_eq!(Process::start_command(a.folder(), command).wait(TIMEOUT).ok().stdout, "content\n");
}

#[test]
fn stream_ends_at_first_failure() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = peer_with_text(&world, &tracker);
    let got = a.run(["get", "missing", "text", "-o", "-"]);
    assert_ne!(got.status, Some(0));
    assert_eq!(got.stdout, "");
}

#[test]
fn interrupted_publish_leaves_no_standard_input() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut a = world.peer("a", &[&tracker]);
    let folder = a.folder().join("data/spool");
    let spooled = || fs::read_dir(&folder).into_iter().flatten().count();
    for with_daemon in [false, true] {
        if with_daemon {
            a.start();
        }
        for (signal, status) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
            let mut command = Command::new("sh");
            // The shell opens the pipe for writing as well, so that the content never ends.
            let script =
                "mkfifo pipe 2>/dev/null; exec \"$0\" publish - --name text --config enjambre.toml <>pipe";
            command.current_dir(a.folder()).args(["-c", script]).arg(binary::enjambre());
            let mut publish = Process::start_command(a.folder(), command);
            wait_for("the content in the data directory", TIMEOUT, || spooled() == 1);
            publish.signal(signal);
            assert_eq!(publish.wait(TIMEOUT).status, status);
            if signal == Signal::KILL && !with_daemon {
                assert_eq!(spooled(), 1);
                // The next command deletes the file.
                a.run(["library"]).ok();
            }
            wait_for("the deletion of the content", TIMEOUT, || spooled() == 0);
        }
    }
}
