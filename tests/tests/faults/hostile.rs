//! Attacks by unauthenticated clients on real processes, which continue to serve other clients with bounded memory. The tests of
//! the transport cover each attack in detail.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use enjambre_core::protocol::message::Request;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process_stats;
use enjambre_tests::raw::{COMMAND, LONG_FRAME, MORE, PREFACE, RawConnection, zmtp_greeting};
use enjambre_tests::setup::Wire;

/// The maximum peak memory of a process in KiB.
const MEMORY_KIB: u64 = 128 * 1024;

struct Scene {
    world: World,
    tracker: Tracker,
    a: Peer,
    hash: String,
}

fn scene() -> Scene {
    scene_over(Wire::Zmq)
}

fn scene_over(wire: Wire) -> Scene {
    let world = World::over(wire);
    let (file, hash) = world.file("film.bin", 8 * MIB);
    let handshake = "transport.limits.handshake_timeout=2s";
    let tracker = world.tracker_with("tracker", &[handshake]);
    let a = world.running_peer_with("a", &[&tracker], &[handshake]);
    a.publish(&file, &[]);
    Scene { world, tracker, a, hash }
}

impl Scene {
    fn endpoints(&self) -> [String; 2] {
        [self.tracker.endpoint().to_owned(), self.a.endpoint().to_owned()]
    }

    /// Checks that another client can download the file, and the peak memory of both processes.
    fn check_service(&mut self) {
        let b = self.world.peer("b", &[&self.tracker]);
        let path = self.world.path("got.bin");
        b.get_to("film.bin", Path::new(&path));
        assert_eq!(hash_of(&path), self.hash);
        for (name, pid) in [("tracker", self.tracker.pid()), ("peer", self.a.pid())] {
            let Some(usage) = process_stats::usage(pid) else { continue };
            println!("{name}: at most {} MiB", usage.peak_kib / 1024);
            assert!(usage.peak_kib < MEMORY_KIB, "{name}: {} KiB", usage.peak_kib);
        }
    }
}

#[test]
fn huge_declared_zmtp_frames_are_rejected() {
    let mut scene = scene();
    for endpoint in scene.endpoints() {
        for exponent in [24, 40, 62, 63] {
            for flags in [0, MORE, COMMAND] {
                let mut raw = RawConnection::connect_and_handshake(&endpoint);
                let head = [&[flags | LONG_FRAME][..], &(1u64 << exponent).to_be_bytes()].concat();
                raw.stream.write_all(&head).unwrap();
                raw.wait_closed();
            }
        }
    }
    scene.check_service();
}

#[test]
fn silent_connections_are_closed() {
    let mut scene = scene();
    let mut silent = Vec::new();
    for endpoint in scene.endpoints() {
        for length in [0, 1, 30, 64] {
            let mut raw = RawConnection::connect(&endpoint);
            raw.stream.write_all(&zmtp_greeting()[..length]).unwrap();
            silent.push(raw);
        }
    }
    scene.check_service();
    for raw in &mut silent {
        raw.wait_closed();
    }
}

#[test]
fn huge_tcp_frames_and_bad_prefaces_are_rejected() {
    let mut scene = scene_over(Wire::Tcp);
    let mut silent = Vec::new();
    for endpoint in scene.endpoints() {
        for lengths in [[u32::MAX, 0], [10, u32::MAX], [1 << 20, 1 << 31]] {
            let mut raw = RawConnection::connect_and_handshake(&endpoint);
            raw.stream.write_all(&lengths.map(u32::to_be_bytes).concat()).unwrap();
            raw.wait_closed();
        }
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &zmtp_greeting()] {
            let mut raw = RawConnection::connect(&endpoint);
            // The connection may be closed before the write completes.
            let _ = raw.stream.write_all(bytes);
            raw.wait_closed();
        }
        for length in [0, 1, 7] {
            let mut raw = RawConnection::connect(&endpoint);
            raw.stream.write_all(&PREFACE[..length]).unwrap();
            silent.push(raw);
        }
    }
    scene.check_service();
    for raw in &mut silent {
        raw.wait_closed();
    }
}

#[test]
fn endless_multipart_messages_are_rejected() {
    let mut scene = scene();
    for endpoint in scene.endpoints() {
        for size in [0, 60_000] {
            let mut raw = RawConnection::connect_and_handshake(&endpoint);
            let body = vec![7; size];
            // Far above the limit: either a write fails, or the connection is closed afterwards.
            for _ in 0..(256 * MIB / (size as u64 + 1000)) {
                if raw.send_frame(MORE, &body).is_err() {
                    break;
                }
            }
            raw.wait_closed();
        }
    }
    scene.check_service();
}

#[test]
fn unread_pieces_over_zmq_use_bounded_memory() {
    check_unread_pieces(Wire::Zmq);
}

#[test]
fn unread_pieces_over_tcp_use_bounded_memory() {
    check_unread_pieces(Wire::Tcp);
}

fn check_unread_pieces(wire: Wire) {
    let mut scene = scene_over(wire);
    let id = scene.hash.parse().unwrap();
    let mut connections: Vec<_> =
        (0..8).map(|_| RawConnection::connect_and_handshake(scene.a.endpoint())).collect();
    for raw in &mut connections {
        // Writes block once the peer stops reading.
        raw.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        for number in 0..3000 {
            if raw
                .send_request(number, &Request::Piece { id, index: (number % 32) as u32, super_seed: false })
                .is_err()
            {
                break;
            }
        }
    }
    scene.check_service();
}

#[test]
fn malformed_requests_get_errors() {
    let mut scene = scene();
    for endpoint in scene.endpoints() {
        let mut raw = RawConnection::connect_and_handshake(&endpoint);
        for body in [&b""[..], b"hello", b"\xff", &[0x81; 5000], b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"] {
            raw.send_frame(0, body).unwrap();
            raw.read_reply().unwrap_err();
        }
        raw.send_request(1, &Request::Status).unwrap();
        raw.read_reply().unwrap();
    }
    scene.check_service();
}
