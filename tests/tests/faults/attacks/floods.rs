//! Floods of valid requests.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use enjambre_core::protocol::codec::decode_reply;
use enjambre_core::protocol::message::{Reply, Request, SessionProof};
use enjambre_core::{FileId, FileKind, KeyPair, RequestId, SessionId};
use enjambre_tests::raw::RawConnection;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};

use super::scene::{Attack, Scene, attacker_address};

/// The number of connections to each node.
const CONNECTIONS: usize = 3;
/// The number of pending requests on each connection.
const PENDING: u64 = 64;
/// The maximum peak memory in MiB.
const MEMORY: u64 = 160;

fn tracker_requests(id: FileId) -> Vec<Request> {
    let find = |query: &str| Request::Find { query: query.to_owned() };
    let list = |pattern: &str| Request::List { pattern: pattern.to_owned(), cursor: None, limit: u32::MAX };
    let unknown = FileId::from_bytes([9; 32]);
    vec![
        find("film.bin"),
        find("absent name"),
        find(&id.to_string()[..8]),
        Request::Providers { id },
        Request::Providers { id: unknown },
        list(""),
        list(&"*?".repeat(150)),
        Request::Status,
        Request::OpenSession { proof: None },
        Request::Have { id, wait: None },
    ]
}

fn peer_requests(id: FileId) -> Vec<Request> {
    let unknown = FileId::from_bytes([9; 32]);
    vec![
        Request::Have { id, wait: None },
        Request::Manifest { id, first: 0 },
        Request::Manifest { id, first: u32::MAX },
        Request::Piece { id, index: 3, super_seed: false },
        Request::Piece { id, index: 4, super_seed: true },
        Request::Piece { id, index: u32::MAX, super_seed: false },
        Request::Have { id: unknown, wait: None },
        Request::Files { ids: vec![unknown; 512] },
        Request::Cancel { ids: (0..1000).map(RequestId).collect() },
        Request::Status,
    ]
}

fn flood(wire: Wire) {
    let mut scene = Scene::new(wire, &[]);
    let targets = scene.targets();
    let endpoints = targets.clone().map(|target| target.endpoint);
    let requests = [tracker_requests(scene.film()), peer_requests(scene.film())];
    let attack = Attack::start(2 * CONNECTIONS, move |number, stop| {
        let (endpoint, requests) = (&endpoints[number % 2], &requests[number % 2]);
        let mut raw = RawConnection::connect_from(endpoint, attacker_address(number), None).unwrap();
        raw.handshake().unwrap();
        for (id, request) in (0..PENDING).zip(requests.iter().cycle()) {
            raw.send_request(id, request).unwrap();
        }
        let mut answered = 0;
        while !stop.is_stopped() {
            // Every reply is followed by the next request.
            let (header, _) = raw.read_message().unwrap();
            assert!(decode_reply(&header).is_some(), "the reply is malformed");
            let request = &requests[answered as usize % requests.len()];
            raw.send_request(PENDING + answered, request).unwrap();
            answered += 1;
        }
        answered
    });
    for target in &targets {
        wait_for("all connections", TIMEOUT, || target.more_handles() >= CONNECTIONS as u64);
    }
    for _ in 0..2 {
        scene.check_service();
    }
    let answered = attack.stop();
    println!("{answered} requests were answered");
    assert!(answered > 1000, "{answered}");
    for target in targets {
        target.wait_released();
        target.assert_memory(MEMORY);
    }
    // Valid requests are no reason to close a connection.
    assert_eq!(scene.aborted_connections(), [vec![], vec![]] as [Vec<String>; 2]);
}

#[test]
fn request_flood_over_tcp_leaves_service_available() {
    flood(Wire::Tcp);
}

#[test]
fn request_flood_over_zmq_leaves_service_available() {
    flood(Wire::Zmq);
}

fn call(raw: &mut RawConnection, request: &Request) -> Reply {
    raw.send_request(0, request).unwrap();
    decode_reply(&raw.read_message().unwrap().0).unwrap().unwrap()
}

fn open_session(raw: &mut RawConnection) -> SessionId {
    let key = KeyPair::generate();
    let Reply::OpenSession { catalogue, nonce, .. } = call(raw, &Request::OpenSession { proof: None }) else {
        panic!("wrong reply")
    };
    let signature = key.sign(&SessionProof::signed_bytes(None, catalogue, nonce, &[]));
    let proof = SessionProof { key: key.public(), nonce, signature, endpoints: Vec::new() };
    match call(raw, &Request::OpenSession { proof: Some(proof) }) {
        Reply::OpenSession { grant: Some(grant), .. } => grant.session,
        other => panic!("{other:?}"),
    }
}

/// Lists with a pattern that requires many comparisons with each name, from one address. Lookups of another address, which
/// are not cached, are answered in turn with a few lists each, and not behind all pending ones.
#[test]
fn list_flood_leaves_lookups_available() {
    const NAMES: u64 = 200;
    const ATTACKERS: usize = 8;
    const LOOKUPS: u64 = 100;
    const LISTS_PER_LOOKUP: u64 = 8;
    let mut scene = Scene::new(Wire::Tcp, &[]);
    let [tracker, _] = scene.targets();
    let connect = |endpoint: &str, from| {
        let mut raw = RawConnection::connect_from(endpoint, from, None).unwrap();
        raw.handshake().unwrap();
        raw
    };
    let name = |n: u64| format!("{}{n:05}", "a".repeat(250));
    let mut raw = connect(&tracker.endpoint, attacker_address(0));
    let session = open_session(&mut raw);
    for n in 0..NAMES + PENDING {
        if n < NAMES {
            let id = FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes());
            let publish = Request::Publish {
                session,
                name: name(n).parse().unwrap(),
                id,
                size: 1,
                kind: FileKind::File,
                again: None,
            };
            raw.send_request(n, &publish).unwrap();
        }
        if n >= PENDING {
            let reply = decode_reply(&raw.read_message().unwrap().0);
            assert!(matches!(reply, Some(Ok(Reply::Published { .. }))), "{reply:?}");
        }
    }
    let (endpoint, lists) = (tracker.endpoint.clone(), Arc::new(AtomicU64::new(0)));
    let attack = Attack::start(ATTACKERS, {
        let lists = Arc::clone(&lists);
        move |_, stop| {
            let pattern = format!("*{}b", "a".repeat(120));
            let list = Request::List { pattern, cursor: None, limit: u32::MAX };
            let mut raw = connect(&endpoint, attacker_address(0));
            for id in 0..PENDING {
                raw.send_request(id, &list).unwrap();
            }
            let mut answered = 0;
            while !stop.is_stopped() {
                let reply = decode_reply(&raw.read_message().unwrap().0);
                // Refusals after a long wait take no time from the lookups.
                lists.fetch_add(u64::from(matches!(reply, Some(Ok(Reply::List { .. })))), Ordering::Relaxed);
                raw.send_request(PENDING + answered, &list).unwrap();
                answered += 1;
            }
            answered
        }
    });
    let answered = || lists.load(Ordering::Relaxed);
    wait_for("the flood", TIMEOUT, || answered() >= 2 * ATTACKERS as u64);
    let mut honest = connect(&tracker.endpoint, Ipv4Addr::LOCALHOST);
    let before = answered();
    for n in 0..LOOKUPS {
        let found = call(&mut honest, &Request::Find { query: name(n) });
        assert!(matches!(found, Reply::Find { .. }), "{found:?}");
    }
    let during = answered() - before;
    println!("{during} lists were answered during {LOOKUPS} lookups");
    assert!(during < LOOKUPS * LISTS_PER_LOOKUP, "{during} lists delayed {LOOKUPS} lookups");
    scene.check_service();
    attack.stop();
}
