//! The HTTP API against its own description: schemathesis sends valid and invalid requests to real nodes, and checks that
//! responses are described and are no server errors.
//!
//! Requires Python 3 and, for the first run, PyPI, as `python.rs` does.

use std::process::Command;

use enjambre_tests::node::World;
use enjambre_tests::setup::Wire;

use crate::python::installed;

const HTTP: &str = "http.listen=[\"127.0.0.1:0\"]";
const VERSION: &str = "4.32.5";

/// Sends requests that the description of the API at this address generates.
fn check(world: &World, address: &str) {
    let Some(python) = installed("schemathesis", VERSION, &format!("schemathesis=={VERSION}")) else {
        return;
    };
    let output = Command::new(python.with_file_name("schemathesis"))
        .args(["run", &format!("http://{address}/api/openapi.json")])
        // It writes reports there.
        .current_dir(world.path(""))
        .args([
            "--max-examples",
            "3",
            "--phases",
            "coverage,fuzzing",
            "--generation-deterministic",
            "--no-color",
        ])
        // Events do not end, and the other requests would publish and write files of this machine.
        .args(["events", "publish", "export"].map(|id| format!("--exclude-operation-id={id}")))
        // Whether a file exists, and what a level or a cursor is, does not follow from the description.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn peer_responds_as_described() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let mut peer = world.running_peer_with("peer", &[&tracker], &[HTTP]);
    peer.publish(&world.file("0", 1).0, &[]);
    check(&world, &peer.http_address());
}

#[test]
fn tracker_responds_as_described() {
    let world = World::over(Wire::Secure);
    let mut tracker = world.tracker_with("tracker", &[HTTP, "swarm.admission=\"invite\""]);
    let (mut member, _) = world.joined("member", &tracker.invite(&[]));
    member.start();
    member.publish(&world.file("0", 1).0, &[]);
    check(&world, &tracker.http_address());
}
