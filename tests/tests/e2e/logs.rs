//! Logs of the nodes.

use enjambre_tests::node::World;
use enjambre_tests::wait::TIMEOUT;
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn log_in_json_has_one_object_per_line() {
    let world = World::default();
    let mut tracker = world.tracker_with("tracker", &["log.format=json", "log.level=debug"]);
    let peer = world.running_peer("peer", &[&tracker]);
    tracker.wait_stderr("session opened");
    drop(peer);
    let output = tracker.stop(Signal::TERM, TIMEOUT);
    let lines: Vec<Value> = output
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let opened = lines.iter().find(|line| line["fields"]["message"] == "session opened").unwrap();
    assert_eq!(
        (&opened["level"], &opened["target"]),
        (&"DEBUG".into(), &"enjambre_swarm::tracker::service".into())
    );
    assert!(opened["fields"]["peer"].is_string() && opened["timestamp"].is_string(), "{opened}");
}

#[test]
fn log_level_is_changed_without_a_restart() {
    let world = World::default();
    let mut tracker = world.tracker("tracker");
    let log = |arguments: &[&str]| tracker.run([&["log"], arguments].concat());
    assert_eq!(log(&[]).ok().stdout, "info\n");
    assert_eq!(log(&["warn"]).ok().stdout, "warn\n");
    assert_eq!(log(&["error, enjambre=info"]).ok().stdout, "error, enjambre=info\n");
    assert_eq!(log(&[]).ok().stdout, "error, enjambre=info\n");
    let invalid = log(&["verbose"]).expect_status(2);
    let expected =
        "error: invalid log level \"verbose\": expected error, warn, info, debug, trace, or a filter";
    assert!(
        invalid.stderr.starts_with(expected) && invalid.stderr.lines().count() == 1,
        "{}",
        invalid.stderr
    );
    tracker.wait_stderr("filter=\"error, enjambre=info\"");
    assert!(
        !tracker.stderr_text().contains("filter=\"warn\""),
        "an event of level info was logged at level warn"
    );

    let mut peer = world.peer("peer", &[&tracker]);
    let stopped = peer.run(["log", "debug"]).expect_status(4);
    assert!(stopped.stderr.contains("no node runs in"), "{}", stopped.stderr);
    peer.start();
    assert_eq!(peer.run(["log", "debug"]).ok().stdout, "debug\n");
    peer.wait_stderr("log level changed");
}
