//! The stable interface of the command line: exit statuses, error messages and `--json` output.

use std::time::Duration;

use enjambre_tests::content::MIB;
use enjambre_tests::node::World;
use enjambre_tests::process::Output;
use enjambre_tests::wait::TIMEOUT;
use rustix::process::Signal;
use serde_json::Value;

/// A port without a listener: ports below 1024 are not assigned dynamically.
const UNREACHABLE: &str = "peer.trackers=[\"zmq://127.0.0.1:9\"]";

#[track_caller]
fn assert_one_line(output: &Output) {
    assert_eq!(output.stderr.lines().count(), 1, "{}: {:?}", output.title, output.stderr);
    assert_eq!(output.stdout, "", "{}", output.title);
}

#[test]
fn missing_name_exits_with_3() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut b = world.peer("b", &[&tracker]);
    for with_daemon in [false, true] {
        let id = "0".repeat(64);
        let cases = [
            &["get", "nothing"][..],
            &["get", &id],
            &["export", "nothing", "-o", "x"],
            &["remove", "nothing"],
            &["verify", "nothing"],
        ];
        for args in cases {
            assert_one_line(&b.run(args.iter().copied()).expect_status(3));
        }
        assert_eq!(b.list(), [] as [Value; 0]);
        assert_eq!(b.run(["library", "--json"]).ok().stdout, "");
        if !with_daemon {
            b.start();
        }
    }
}

#[test]
fn command_without_peer_creates_no_data_directory() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let peer = world.peer("peer", &[&tracker]);
    for command in ["library", "downloads", "verify"] {
        assert_eq!(peer.run([command]).ok().stderr, "", "{command}");
    }
    for command in ["list", "status"] {
        peer.run([command]).ok();
    }
    for args in
        [&["export", "film.bin", "-o", "x"][..], &["remove", "film.bin"], &["downloads", "pause", "x"]]
    {
        assert_one_line(&peer.run(args.iter().copied()).expect_status(3));
    }
    assert!(!peer.folder().join("data").exists());
}

#[test]
fn unreachable_tracker_exits_with_4() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let (file, _) = world.file("film.bin", MIB);
    let mut a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    a.kill();
    let b = world.peer_with("b", &[&tracker], &["download.provider_timeout=1s"]);
    let failed = b.run(["get", "film.bin"]).expect_status(4);
    assert_one_line(&failed);
    assert!(failed.stderr.starts_with("error: cannot download film.bin: "), "{}", failed.stderr);
    let unreachable = ["--set", UNREACHABLE];
    assert_one_line(&b.run(["list"].into_iter().chain(unreachable)).expect_status(4));
    assert_one_line(&b.run(["get", "film.bin"].into_iter().chain(unreachable)).expect_status(4));
    let json = b.run(["get", "film.bin", "--json"]).expect_status(4);
    let last = json.json().pop().expect("there is an event");
    assert_eq!(last["event"], "error", "{last}");
    assert!(last["message"].as_str().is_some_and(|message| !message.is_empty()), "{last}");
}

#[test]
fn frozen_daemon_is_reported() {
    let world = World::default();
    let mut b = world.running_peer("b", &[]);
    b.signal(Signal::STOP);
    for command in ["library", "status"] {
        let output = b.spawn([command]).wait(Duration::from_secs(20)).expect_status(1);
        assert!(output.stderr.contains("does not respond"), "{}", output.stderr);
    }
    b.signal(Signal::CONT);
    b.run(["library"]).ok();
}

#[test]
fn setting_for_a_running_daemon_is_refused() {
    let world = World::default();
    let b = world.running_peer_with("b", &[], &["limits.upload=5MB/s"]);
    b.run(["library"]).ok();
    let output = b.run(["library", "--set", "download.provider_timeout=1s"]).expect_status(2);
    assert!(output.stderr.contains("--set download.provider_timeout"), "{}", output.stderr);
    b.run(["library", "--set", "log.level=error"]).ok();
}

#[test]
fn failure_exits_with_1_and_one_line() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let b = world.peer("b", &[&tracker]);
    let output = b.run(["publish", "/no/such/file"]).expect_status(1);
    assert_eq!(output.stderr, "error: cannot publish /no/such/file: no such file or directory\n");
    let (file, _) = world.file("film.bin", MIB);
    b.publish(&file, &[]);
    let output = b.run(["export", "film.bin", "-o", "/no/such/file"]).expect_status(1);
    assert_eq!(output.stderr, "error: cannot use /no/such/file: its directory does not exist\n");
    let output = b.run(["get", "abcdef0"]).expect_status(3);
    assert!(output.stderr.contains("at least 8 digits"), "{}", output.stderr);
}

#[test]
fn json_output_has_documented_fields() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let (file, hash) = world.file("film.bin", MIB + 5);
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&file, &[]);
    let b = world.running_peer("b", &[&tracker]);

    let listed = b.listed("film.bin").expect("the file is listed");
    assert_eq!(
        [&listed["name"], &listed["id"], &listed["size"], &listed["providers"]],
        [&Value::from("film.bin"), &hash.as_str().into(), &(MIB + 5).into(), &1.into()]
    );

    let output = b.run(["get", "film.bin", "--json"]).ok();
    let mut events = output.json();
    let last = events.pop().expect("there is a last event");
    assert_eq!(
        [&last["event"], &last["name"], &last["id"], &last["bytes"], &last["received"]],
        [
            &Value::from("complete"),
            &"film.bin".into(),
            &hash.as_str().into(),
            &(MIB + 5).into(),
            &(MIB + 5).into()
        ]
    );
    assert!(last["seconds"].is_number() && last.get("path").is_some(), "{last}");
    for event in &events {
        assert_eq!(event["event"], "progress");
        assert!(event["done"].as_u64() <= event["total"].as_u64(), "{event}");
        assert!(event["providers"].is_u64(), "{event}");
    }

    let stored = b.in_library("film.bin").expect("the library contains the file");
    assert_eq!(
        [&stored["id"], &stored["size"], &stored["pieces"], &stored["available_pieces"], &stored["path"]],
        [&hash.as_str().into(), &(MIB + 5).into(), &5.into(), &5.into(), &Value::Null]
    );
    assert_eq!(stored["content"], "database");
    let linked = a.in_library("film.bin").expect("the library contains the file");
    assert_eq!(linked["path"], file.to_str().unwrap());
    assert_eq!(linked["content"], "linked");

    let path = world.path("got.bin");
    let to_path = b.run(["get", "film.bin", "--json", "-o", path.to_str().unwrap()]).ok();
    let last = to_path.json().pop().unwrap();
    assert_eq!([&last["path"], &last["received"]], [&Value::from(path.to_str().unwrap()), &0.into()]);
    let again = a.run(["get", "film.bin"]).ok().stdout;
    assert!(again.starts_with(&format!("film.bin: already complete, {} (", file.display())), "{again}");

    for (node, status) in
        [("peer", b.run(["status", "--json"])), ("tracker", tracker.run(["status", "--json"]))]
    {
        let status = status.ok().json();
        assert!(!status.is_empty() && status.iter().all(Value::is_object), "{node}: {status:?}");
    }
}

#[test]
fn hidden_characters_in_names_are_visible() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let name = "p\u{430}ge\u{202e}fdp.exe";
    let (file, _) = world.file("file", 1);
    let published = a.publish(&file, &["--name", name]);
    for output in [&published.stdout, &a.run(["list"]).ok().stdout, &a.run(["library"]).ok().stdout] {
        assert!(output.contains("p\u{430}ge\\u{202e}fdp.exe"), "{output}");
    }
    assert!(a.run(["list"]).ok().stdout.contains("(confusable letters)"));
    assert_eq!(a.run(["list", "--json"]).ok().json()[0]["name"], name);
}

#[test]
fn list_filters_by_pattern() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    for name in ["film.bin", "film.txt", "song.bin"] {
        let (file, _) = world.file(name, name.len() as u64);
        a.publish(&file, &[]);
    }
    let names = |pattern: &str| -> Vec<String> {
        let files = a.run(["list", pattern, "--json"]).ok().json();
        files.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("film"), ["film.bin", "film.txt"]);
    assert_eq!(names("*.bin"), ["film.bin", "song.bin"]);
    assert_eq!(names("ong"), ["song.bin"]);
    assert_eq!(names("nothing"), [] as [&str; 0]);
}

#[test]
fn second_daemon_on_data_dir_is_refused() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let b = world.running_peer("b", &[&tracker]);
    // Each waits for the running node to exit, so the test starts both at once.
    let (peer, tracker) = (b.spawn(["peer", "-q"]), tracker.spawn(["tracker", "-q"]));
    assert_one_line(&peer.wait(TIMEOUT).expect_status(1));
    assert_one_line(&tracker.wait(TIMEOUT).expect_status(1));
}
