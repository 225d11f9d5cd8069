//! `storage dump` and `storage stats`.

use std::process::Command;

use enjambre_tests::binary;
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::TIMEOUT;
use rustix::process::Signal;

#[test]
fn dump_and_stats_show_databases_of_stopped_node() {
    for backend in ["sqlite", "sled"] {
        let world = World::new(Setup { backend, ..Setup::default() });
        let mut tracker = world.tracker("tracker");
        let mut a = world.running_peer("a", &[&tracker]);
        let (file, hash) = world.file("film.bin", 300_000);
        a.publish(&file, &["--copy"]);
        // A killed peer does not end its session.
        a.kill();
        let running = tracker.run(["storage", "stats"]).expect_status(1);
        assert!(running.stderr.contains("in use"), "{}", running.stderr);
        tracker.stop(Signal::TERM, TIMEOUT).ok();

        let stats = tracker.run(["storage", "stats", "--json"]).ok().json();
        assert_eq!(
            (&stats[0]["database"], stats[0]["spaces"]["files"]["entries"].as_u64()),
            (&"catalogue".into(), Some(1))
        );
        assert!(
            stats[0]["format"].as_u64().unwrap() >= 1 && stats[0]["free_bytes"].as_u64().is_some(),
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

        // A closed pipe is not an error.
        let mut command = Command::new("bash");
        command.args(["-c", "set -o pipefail; \"$0\" storage dump --config enjambre.toml | head -n 1"]);
        command.arg(binary::enjambre()).current_dir(tracker.folder());
        let head = Process::start_command(&world.path(""), command).wait(TIMEOUT).ok();
        assert_eq!((head.stdout.lines().count(), head.stderr.as_str()), (1, ""));
    }
}
