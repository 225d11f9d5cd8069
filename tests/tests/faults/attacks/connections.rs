//! Thousands of connections from hundreds of addresses.

use std::io::{Read, Write};

use enjambre_tests::raw::RawConnection;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use enjambre_transport::open_files::raise_open_file_limit;

use super::scene::{Scene, attacker_address};

/// The number of connections, unless the limit on open files is lower.
const CONNECTIONS: u64 = 10_000;
/// Below the limit of one address, so that only the total limit applies.
const PER_ADDRESS: usize = 50;
/// The number of connections that are opened without waiting. The backlog of a listener, 128, holds more.
const BURST: usize = 64;
/// The other open files of the test process.
const OTHER_FILES: u64 = 1000;
/// The default limit on connections of a node.
const MAX_CONNECTIONS: u64 = 1024;
/// The file handles of a ZeroMQ connection.
const HANDLES: u64 = 3;
/// Connections that are being closed.
const CLOSING: u64 = 64;
/// Handles that a node reserves for other purposes.
const RESERVED: u64 = 256;
/// More than the number of other connections.
const OTHER_CONNECTIONS: u64 = 64;
/// The maximum peak memory in MiB.
const MEMORY: u64 = 256;

/// In the default configuration trackers use ZeroMQ and peers use TCP.
#[test]
fn ten_thousand_connections_leave_service_available() {
    let limit = raise_open_file_limit().unwrap_or(u64::MAX);
    let count = CONNECTIONS.min(limit.saturating_sub(OTHER_FILES));
    if count < CONNECTIONS {
        // The test harness hides the output of `eprintln!` unless the test fails.
        let note = format!(
            "NOTE: only {count} instead of {CONNECTIONS} connections: the limit is {limit} open files\n"
        );
        std::io::stderr().write_all(note.as_bytes()).unwrap();
    }
    // The limit on open files also applies to the node.
    let allowed = limit.saturating_sub(RESERVED) / HANDLES;
    let limit = MAX_CONNECTIONS.min(allowed.saturating_sub(CLOSING).max(allowed / 2).max(1));
    let mut scene = Scene::new(Wire::Default, &[]);
    for target in scene.targets() {
        let held: Vec<RawConnection> = (0..count as usize)
            .map(|number| {
                let mut raw = RawConnection::connect_from(
                    &target.endpoint,
                    attacker_address(number / PER_ADDRESS),
                    None,
                )
                .unwrap();
                let greeting = raw.handshake_bytes();
                // The node closes most connections before the handshake.
                let _ = raw.stream.write_all(&greeting);
                if number % BURST == 0 {
                    // Wait until this connection is accepted or closed. If the backlog is full, the system delays connections by 1 s.
                    let _ = raw.stream.read(&mut [0]);
                }
                raw
            })
            .collect();
        // The accepted connections have completed the handshake, so they stay open.
        wait_for("the maximum number of connections", TIMEOUT, || {
            target.more_handles() + OTHER_CONNECTIONS >= limit
        });
        for _ in 0..2 {
            scene.check_service();
        }
        let (handles, max_handles) = (target.more_handles(), (limit + CLOSING) * HANDLES + OTHER_CONNECTIONS);
        assert!((limit / 2..=max_handles).contains(&handles), "{handles} handles for {limit} connections");
        drop(held);
        target.wait_released();
        target.assert_memory(MEMORY);
    }
    for lines in scene.aborted_connections() {
        assert!(lines.iter().any(|line| line.contains("too many connections")), "{lines:?}");
    }
    scene.check_service();
}
