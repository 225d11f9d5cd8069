//! What strangers may do to an open port before anybody knows them: a real process goes on serving others, in bounded
//! memory. Each attack by itself is tested with the transport.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use enjambre_core::protocol::codec::{decode_reply, encode_request};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::transport::envelope::RequestId;
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::figures;
use enjambre_tests::node::{Peer, Tracker, Wire, World};
use enjambre_tests::wait::LONG;

/// The most memory that a process may have used after all that, in KiB.
const MEMORY_KIB: u64 = 128 * 1024;
/// How a plain TCP connection begins.
const PREFACE: [u8; 8] = *b"\x8aENJTCP\x01";
const MORE: u8 = 1;
const LONG_FRAME: u8 = 2;
const COMMAND: u8 = 4;

/// Speaks ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>), or plain frames, byte by byte, so that it can break every rule.
struct Raw(TcpStream, Wire);

impl Raw {
    fn connect(endpoint: &str) -> Self {
        let (scheme, address) = endpoint.split_once("://").unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self(stream, if scheme == "tcp" { Wire::Tcp } else { Wire::Zmq })
    }

    /// A connection that can ask.
    fn greeted(endpoint: &str) -> Self {
        if endpoint.starts_with("tcp") { Self::plain(endpoint) } else { Self::dealer(endpoint) }
    }

    fn greeting() -> [u8; 64] {
        let mut bytes = [0; 64];
        (bytes[0], bytes[9], bytes[10]) = (0xff, 0x7f, 3);
        bytes[12..16].copy_from_slice(b"NULL");
        bytes
    }

    /// A connection past the handshake, as a DEALER.
    fn dealer(endpoint: &str) -> Self {
        let mut raw = Self::connect(endpoint);
        raw.0.write_all(&Self::greeting()).unwrap();
        raw.0.read_exact(&mut [0; 64]).unwrap();
        let property = |name: &[u8], value: &[u8]| {
            [&[name.len() as u8][..], name, &(value.len() as u32).to_be_bytes(), value].concat()
        };
        let properties = property(b"Socket-Type", b"DEALER");
        raw.frame(COMMAND, &[b"\x05READY", &properties[..]].concat()).unwrap();
        let (flags, body) = raw.read_frame();
        assert!(flags & COMMAND != 0 && body.starts_with(b"\x05READY"));
        raw
    }

    /// A connection past the preface, for plain frames.
    fn plain(endpoint: &str) -> Self {
        let mut raw = Self::connect(endpoint);
        raw.0.write_all(&PREFACE).unwrap();
        let mut theirs = [0; PREFACE.len()];
        raw.0.read_exact(&mut theirs).unwrap();
        assert_eq!(theirs, PREFACE);
        raw
    }

    fn frame(&mut self, flags: u8, body: &[u8]) -> std::io::Result<()> {
        let head = match u8::try_from(body.len()) {
            Ok(len) => vec![flags, len],
            Err(_) => [&[flags | LONG_FRAME][..], &(body.len() as u64).to_be_bytes()].concat(),
        };
        self.0.write_all(&[&head, body].concat())
    }

    fn read_frame(&mut self) -> (u8, Vec<u8>) {
        let mut flags = [0];
        self.0.read_exact(&mut flags).unwrap();
        let len = if flags[0] & LONG_FRAME == 0 {
            let mut len = [0];
            self.0.read_exact(&mut len).unwrap();
            u64::from(len[0])
        } else {
            let mut len = [0; 8];
            self.0.read_exact(&mut len).unwrap();
            u64::from_be_bytes(len)
        };
        assert!(len <= 4 * MIB, "a frame of {len} bytes");
        let mut body = vec![0; len as usize];
        self.0.read_exact(&mut body).unwrap();
        (flags[0], body)
    }

    fn ask(&mut self, id: u64, request: &Request) -> std::io::Result<()> {
        let header = encode_request(RequestId(id), request);
        if self.1 == Wire::Zmq {
            return self.frame(0, &header);
        }
        let lengths = [header.len() as u32, 0].map(u32::to_be_bytes).concat();
        self.0.write_all(&[&lengths, &header[..]].concat())
    }

    fn reply(&mut self) -> Reply {
        let (flags, header) = self.read_frame();
        assert_eq!(flags & (MORE | COMMAND), 0);
        decode_reply(&header).unwrap().unwrap()
    }

    /// Waits until the other side has closed the connection.
    fn wait_closed(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("it is not closed: {error}"),
            }
        }
    }
}

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
                let mut raw = Raw::dealer(&endpoint);
                let head = [&[flags | LONG_FRAME][..], &(1u64 << exponent).to_be_bytes()].concat();
                raw.0.write_all(&head).unwrap();
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
            raw.0.write_all(&Raw::greeting()[..length]).unwrap();
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
            let mut raw = Raw::plain(&endpoint);
            raw.0.write_all(&lengths.map(u32::to_be_bytes).concat()).unwrap();
            raw.wait_closed();
        }
        for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &Raw::greeting()] {
            let mut raw = Raw::connect(&endpoint);
            // It may be closed before all of it was said.
            let _ = raw.0.write_all(said);
            raw.wait_closed();
        }
        for length in [0, 1, 7] {
            let mut raw = Raw::connect(&endpoint);
            raw.0.write_all(&PREFACE[..length]).unwrap();
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
            let mut raw = Raw::dealer(&endpoint);
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
        raw.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
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
        let mut raw = Raw::dealer(&endpoint);
        for body in [&b""[..], b"hello", b"\xff", &[0x81; 5000], b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"] {
            raw.frame(0, body).unwrap();
            let (_, header) = raw.read_frame();
            assert!(matches!(decode_reply(&header), Some(Err(_))), "{body:?}");
        }
        raw.ask(1, &Request::Status).unwrap();
        raw.reply();
    }
    scene.serves_others();
}
