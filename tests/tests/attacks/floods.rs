//! Good requests, as fast as they are answered.

use enjambre_core::model::id::FileId;
use enjambre_core::protocol::codec::decode_reply;
use enjambre_core::protocol::message::Request;
use enjambre_core::transport::envelope::RequestId;
use enjambre_tests::node::Wire;
use enjambre_tests::raw::Raw;
use enjambre_tests::wait::{LONG, wait_for};

use crate::scene::{Attack, Scene, stranger};

/// Connections to each of the two.
const CONNECTIONS: usize = 3;
/// How many requests are under way on each.
const UNDER_WAY: u64 = 64;
/// In MiB.
const MEMORY: u64 = 160;

fn requests_to_a_tracker(id: FileId) -> Vec<Request> {
    let find = |query: &str| Request::Find { query: query.to_owned() };
    let list = |pattern: &str| Request::List { pattern: pattern.to_owned(), cursor: None, limit: u32::MAX };
    let nobody = FileId::from_bytes([9; 32]);
    vec![
        find("film.bin"),
        find("nothing of this name"),
        find(&id.to_string()[..8]),
        Request::Providers { id },
        Request::Providers { id: nobody },
        list(""),
        list(&"*?".repeat(150)),
        Request::Status,
        Request::Hello { proof: None },
        Request::Have { id, wait: None },
    ]
}

fn requests_to_a_peer(id: FileId) -> Vec<Request> {
    let nobody = FileId::from_bytes([9; 32]);
    vec![
        Request::Have { id, wait: None },
        Request::Manifest { id, first: 0 },
        Request::Manifest { id, first: u32::MAX },
        Request::Piece { id, index: 3, sparing: false },
        Request::Piece { id, index: 4, sparing: true },
        Request::Piece { id, index: u32::MAX, sparing: false },
        Request::Have { id: nobody, wait: None },
        Request::Files { ids: vec![nobody; 512] },
        Request::Cancel { ids: (0..1000).map(RequestId).collect() },
        Request::Status,
    ]
}

fn flood(wire: Wire) {
    let mut scene = Scene::new(wire, &[]);
    let targets = scene.targets();
    let endpoints = targets.clone().map(|target| target.endpoint);
    let asked = [requests_to_a_tracker(scene.film()), requests_to_a_peer(scene.film())];
    let attack = Attack::start(2 * CONNECTIONS, move |number, stop| {
        let (endpoint, asked) = (&endpoints[number % 2], &asked[number % 2]);
        let mut raw = Raw::connect_from(endpoint, stranger(number), None).unwrap();
        raw.greet().unwrap();
        let requests = |ids: std::ops::Range<u64>| ids.zip(asked.iter().cycle());
        for (id, request) in requests(0..UNDER_WAY) {
            raw.ask(id, request).unwrap();
        }
        let mut answered = 0;
        while !stop.is_over() {
            // For each that is answered the next one.
            let (header, _) = raw.hear().unwrap();
            assert!(decode_reply(&header).is_some(), "it cannot be read");
            let request = &asked[answered as usize % asked.len()];
            raw.ask(UNDER_WAY + answered, request).unwrap();
            answered += 1;
        }
        answered
    });
    for target in &targets {
        wait_for("all of them", LONG, || target.more_handles() >= CONNECTIONS as u64);
    }
    for _ in 0..2 {
        scene.serves_others();
    }
    let answered = attack.end();
    println!("{answered} were answered");
    assert!(answered > 1000, "{answered}");
    for target in targets {
        target.wait_released();
        target.assert_memory(MEMORY);
    }
    // Nobody did anything that is forbidden.
    assert_eq!(scene.cut_off(), [vec![], vec![]] as [Vec<String>; 2]);
}

#[test]
fn good_requests_over_tcp() {
    flood(Wire::Tcp);
}

#[test]
fn good_requests_over_zmq() {
    flood(Wire::Zmq);
}
