//! What strangers may do to an open port before anybody knows them: a real process goes on serving others, in bounded
//! memory. Each attack by itself is tested with the transport.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use enjambre_core::protocol::message::Request;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::figures;
use enjambre_tests::node::{Peer, Tracker, Wire, World};
use enjambre_tests::raw::{COMMAND, LONG_FRAME, MORE, PREFACE, Raw, zmtp_greeting};

/// The most memory that a process may have used after all that, in KiB.
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
    let handshake = "transport.limits.handshake=2s";
    let tracker = world.tracker_with("tracker", &[handshake]);
    let a = world.running_peer_with("a", &[&tracker], &[handshake]);
    a.publish(&file, &[]);
    Scene { world, tracker, a, hash }
}

impl Scene {
    fn endpoints(&self) -> [String; 2] {
        [self.tracker.endpoint().to_owned(), self.a.endpoint().to_owned()]
    }

    /// Somebody else is served as if nothing happened, and the memory is as it should be.
    fn serves_others(&mut self) {
        let b = self.world.peer("b", &[&self.tracker]);
        let path = self.world.path("got.bin");
        b.get_to("film.bin", Path::new(&path));
        assert_eq!(hash_of(&path), self.hash);
        for (name, pid) in [("tracker", self.tracker.pid()), ("peer", self.a.pid())] {
            let Some(figures) = figures::of(pid) else { continue };
            println!("{name}: at most {} MiB", figures.peak_kib / 1024);
            assert!(figures.peak_kib < MEMORY_KIB, "{name}: {} KiB", figures.peak_kib);
        }
    }
}

#[test]
fn frames_that_declare_to_be_huge() {
    let mut scene = scene();
    for endpoint in scene.endpoints() {
        for exponent in [24, 40, 62, 63] {
            for flags in [0, MORE, COMMAND] {
                let mut raw = Raw::greeted(&endpoint);
                let head = [&[flags | LONG_FRAME][..], &(1u64 << exponent).to_be_bytes()].concat();
                raw.stream.write_all(&head).unwrap();
                raw.wait_closed();
            }
        }
    }
    scene.serves_others();
}

#[test]
fn connections_that_say_nothing_or_half_a_greeting() {
    let mut scene = scene();
    let mut silent = Vec::new();
    for endpoint in scene.endpoints() {
        for length in [0, 1, 30, 64] {
            let mut raw = Raw::connect(&endpoint);
            raw.stream.write_all(&zmtp_greeting()[..length]).unwrap();
            silent.push(raw);
        }
    }
    scene.serves_others();
    for raw in &mut silent {
        raw.wait_closed();
    }
}

#[test]
fn plain_frames_that_declare_to_be_huge_and_prefaces_that_are_none() {
    let mut scene = scene_over(Wire::Tcp);
    let mut silent = Vec::new();
    for endpoint in scene.endpoints() {
        for lengths in [[u32::MAX, 0], [10, u32::MAX], [1 << 20, 1 << 31]] {
            let mut raw = Raw::greeted(&endpoint);
            raw.stream.write_all(&lengths.map(u32::to_be_bytes).concat()).unwrap();
            raw.wait_closed();
        }
        for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &zmtp_greeting()] {
            let mut raw = Raw::connect(&endpoint);
            // It may be closed before all of it was said.
            let _ = raw.stream.write_all(said);
            raw.wait_closed();
        }
        for length in [0, 1, 7] {
            let mut raw = Raw::connect(&endpoint);
            raw.stream.write_all(&PREFACE[..length]).unwrap();
            silent.push(raw);
        }
    }
    scene.serves_others();
    for raw in &mut silent {
        raw.wait_closed();
    }
}

#[test]
fn frames_without_end() {
    let mut scene = scene();
    for endpoint in scene.endpoints() {
        for size in [0, 60_000] {
            let mut raw = Raw::greeted(&endpoint);
            let body = vec![7; size];
            // Far more than anybody may hold: either a write fails, or the connection is closed behind them.
            for _ in 0..(256 * MIB / (size as u64 + 1000)) {
                if raw.frame(MORE, &body).is_err() {
                    break;
                }
            }
            raw.wait_closed();
        }
    }
    scene.serves_others();
}

#[test]
fn thousands_of_pieces_asked_for_over_zmq_and_never_read() {
    thousands_of_pieces_asked_for(Wire::Zmq);
}

#[test]
fn thousands_of_pieces_asked_for_over_tcp_and_never_read() {
    thousands_of_pieces_asked_for(Wire::Tcp);
}

fn thousands_of_pieces_asked_for(wire: Wire) {
    let mut scene = scene_over(wire);
    let id = scene.hash.parse().unwrap();
    let mut greedy: Vec<_> = (0..8).map(|_| Raw::greeted(scene.a.endpoint())).collect();
    for raw in &mut greedy {
        // Once the peer takes no more, the write would wait for ever.
        raw.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        for number in 0..3000 {
            if raw.ask(number, &Request::Piece { id, index: (number % 32) as u32, sparing: false }).is_err() {
                break;
            }
        }
    }
    scene.serves_others();
}

#[test]
fn requests_that_are_nonsense() {
    let mut scene = scene();
    for endpoint in scene.endpoints() {
        let mut raw = Raw::greeted(&endpoint);
        for body in [&b""[..], b"hello", b"\xff", &[0x81; 5000], b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"] {
            raw.frame(0, body).unwrap();
            raw.reply().unwrap_err();
        }
        raw.ask(1, &Request::Status).unwrap();
        raw.reply().unwrap();
    }
    scene.serves_others();
}
