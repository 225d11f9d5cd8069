//! Thousands of connections from hundreds of addresses.

use std::io::{Read, Write};

use enjambre_tests::node::Wire;
use enjambre_tests::raw::Raw;
use enjambre_tests::wait::{LONG, wait_for};
use enjambre_transport::open_files::raise_open_file_limit;

use crate::scene::{Scene, stranger};

/// How many are opened, where the limit on open files allows it.
const CONNECTIONS: u64 = 10_000;
/// Fewer than one address may have, so that only the limit on all of them is in their way.
const FROM_EACH: usize = 50;
/// So many may wait to be accepted.
const BURST: usize = 256;
/// What this process needs besides.
const OTHER_FILES: u64 = 1000;
/// The limit on all connections, by default, and what each costs over ZeroMQ.
const PLACES: u64 = 1024;
const HANDLES: u64 = 3;
/// Connections that lost their places and may be still open.
const LEAVING: u64 = 64;
/// Handles that a node keeps for what else it does.
const KEPT_FREE: u64 = 256;
/// More than there are of connections that were there before, or are honest.
const HONEST: u64 = 64;
/// In MiB.
const MEMORY: u64 = 256;

/// By default trackers are spoken to over ZeroMQ and peers over TCP.
#[test]
fn ten_thousand_connections() {
    let limit = raise_open_file_limit().unwrap_or(u64::MAX);
    let count = CONNECTIONS.min(limit.saturating_sub(OTHER_FILES));
    if count < CONNECTIONS {
        // Not by a macro: what those write is shown where a test fails only.
        let note =
            format!("NOTE: only {count} connections and not {CONNECTIONS}: {limit} files may be open\n");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
    }
    // A node has the same limit.
    let allowed = limit.saturating_sub(KEPT_FREE) / HANDLES;
    let places = PLACES.min(allowed.saturating_sub(LEAVING).max(allowed / 2).max(1));
    let mut scene = Scene::new(Wire::Stock, &[]);
    for target in scene.targets() {
        let held: Vec<Raw> = (0..count as usize)
            .map(|number| {
                let mut raw =
                    Raw::connect_from(&target.endpoint, stranger(number / FROM_EACH), None).unwrap();
                let greeting = raw.greeting();
                // Most are closed before they can say anything.
                let _ = raw.stream.write_all(&greeting);
                if number % BURST == 0 {
                    // Greeted or closed: else the system drops some for want of room, and tries them again a second later.
                    let _ = raw.stream.read(&mut [0]);
                }
                raw
            })
            .collect();
        // All places are taken, and stay so, for those who have them have greeted.
        wait_for("taking all places", LONG, || target.more_handles() + HONEST >= places);
        for _ in 0..2 {
            scene.serves_others();
        }
        let (handles, most) = (target.more_handles(), (places + LEAVING) * HANDLES + HONEST);
        assert!((places / 2..=most).contains(&handles), "{handles} handles, for {places} places");
        drop(held);
        target.wait_released();
        target.assert_memory(MEMORY);
    }
    for lines in scene.cut_off() {
        assert!(lines.iter().any(|line| line.contains("too many connections")), "{lines:?}");
    }
    scene.serves_others();
}
