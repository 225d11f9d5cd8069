//! Who takes nothing of what it asked for, and who never comes to the end of what it says.

use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;

use enjambre_core::model::id::FileId;
use enjambre_core::protocol::codec::encode_request;
use enjambre_core::protocol::message::Request;
use enjambre_core::transport::envelope::RequestId;
use enjambre_tests::node::Wire;
use enjambre_tests::raw::Raw;
use enjambre_tests::wait::{LONG, wait_for};

use crate::scene::{Attack, Scene, stranger};

/// From how many addresses, and how many connections from each. Together they ask for far more than may be queued, and
/// than the system queues for them: on loopback that is some MiB for each.
const ADDRESSES: usize = 4;
const FROM_EACH: usize = 24;
/// What a reader of nothing has room for: as little as there can be.
const ROOM: usize = 2048;
/// How many pieces each asks for.
const PIECES: u32 = 64;
/// Writers at each target.
const WRITERS: usize = 48;
/// In MiB. What may be queued for all of them is 32 MiB.
const MEMORY: u64 = 160;
/// Nobody is cut off while an attack goes on: room is shared from the beginning.
const PATIENT: &str = "transport.limits.stalled=10min";
/// Everybody is who may be.
const IMPATIENT: &str = "transport.limits.stalled=5s";

/// A connection that has asked for many pieces and reads none.
fn greedy(endpoint: &str, from: Ipv4Addr, id: FileId) -> Option<Raw> {
    let mut raw = Raw::connect_from(endpoint, from, Some(ROOM)).ok()?;
    raw.greet().ok()?;
    raw.stream.set_nonblocking(true).unwrap();
    let piece = |number: u32| Request::Piece { id, index: number % 32, sparing: false };
    let asked =
        (0..PIECES).flat_map(|number| raw.message(&encode_request(RequestId(number.into()), &piece(number))));
    let asked: Vec<u8> = asked.collect();
    raw.stream.write_all(&asked).ok()?;
    Some(raw)
}

/// Whether the other side has closed it, by saying one thing more.
fn is_closed(raw: &mut Raw) -> bool {
    raw.stream.write(&[0]).is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
}

/// As many readers from each address; whoever is cut off comes back. They count how often.
fn readers(endpoint: &str, id: FileId, from_each: usize) -> Attack {
    let endpoint = endpoint.to_owned();
    Attack::start(ADDRESSES, move |number, stop| {
        let mut held: Vec<Option<Raw>> = (0..from_each).map(|_| None).collect();
        let mut cut_off = 0;
        loop {
            for place in &mut held {
                if place.as_mut().is_some_and(is_closed) {
                    *place = None;
                    cut_off += 1;
                }
                if place.is_none() && !stop.is_over() {
                    *place = greedy(&endpoint, stranger(number), id);
                }
            }
            if stop.is_over_soon() {
                return cut_off;
            }
        }
    })
}

fn readers_of_nothing(wire: Wire) {
    let mut scene = Scene::new(wire, &[PATIENT]);
    let [_, target] = scene.targets();
    let attack = readers(&target.endpoint, scene.film(), FROM_EACH);
    wait_for("most of them", LONG, || target.more_handles() >= (ADDRESSES * FROM_EACH / 2) as u64);
    for _ in 0..3 {
        scene.serves_others();
    }
    assert_eq!(attack.end(), 0, "nobody has to be cut off for that");
    target.wait_released();
    target.assert_memory(MEMORY);
    scene.serves_others();
}

#[test]
fn readers_of_nothing_over_tcp() {
    readers_of_nothing(Wire::Tcp);
}

#[test]
fn readers_of_nothing_over_zmq() {
    readers_of_nothing(Wire::Zmq);
}

fn are_cut_off(wire: Wire) {
    let mut scene = Scene::new(wire, &[IMPATIENT]);
    let [_, target] = scene.targets();
    let attack = readers(&target.endpoint, scene.film(), 1);
    wait_for("cutting off who takes nothing", LONG, || {
        scene.peer.stderr_text().contains("it took nothing of what was sent to it for too long")
    });
    scene.serves_others();
    assert!(attack.end() > 0);
    target.wait_released();
    scene.cut_off();
}

#[test]
fn who_reads_nothing_is_cut_off_over_tcp() {
    are_cut_off(Wire::Tcp);
}

#[test]
fn who_reads_nothing_is_cut_off_over_zmq() {
    are_cut_off(Wire::Zmq);
}

/// Writers of requests that are as long as allowed, a byte at a time; whoever is cut off comes back. They count how often.
fn writers(endpoints: [String; 2], each: usize) -> Attack {
    Attack::start(2, move |number, stop| {
        let find = encode_request(RequestId(1), &Request::Find { query: "x".repeat(60_000) });
        let connect = || {
            let mut raw = Raw::connect_from(&endpoints[number], stranger(number), None).ok()?;
            raw.greet().ok()?;
            let asked = raw.message(&find);
            Some((raw, asked.into_iter()))
        };
        let mut writers: Vec<_> = (0..each).map(|_| None).collect();
        let mut cut_off = 0;
        while !stop.is_over_soon() {
            for place in &mut writers {
                let Some((raw, asked)) = place else {
                    *place = connect();
                    continue;
                };
                let byte = asked.next().expect("there are thousands of them");
                if raw.stream.write_all(&[byte]).is_err() {
                    *place = None;
                    cut_off += 1;
                }
            }
        }
        cut_off
    })
}

/// By default trackers are spoken to over ZeroMQ and peers over TCP.
#[test]
fn writers_who_never_come_to_an_end() {
    let mut scene = Scene::new(Wire::Stock, &[PATIENT]);
    let targets = scene.targets();
    let attack = writers(targets.clone().map(|target| target.endpoint), WRITERS);
    for target in &targets {
        wait_for("all of them", LONG, || target.more_handles() >= WRITERS as u64);
    }
    scene.serves_others();
    assert_eq!(attack.end(), 0, "nobody has to be cut off for that");
    for target in targets {
        target.wait_released();
        target.assert_memory(MEMORY);
    }
}

#[test]
fn who_never_comes_to_an_end_is_cut_off() {
    let mut scene = Scene::new(Wire::Stock, &[IMPATIENT]);
    let targets = scene.targets();
    let attack = writers(targets.clone().map(|target| target.endpoint), 1);
    wait_for("cutting off who does not come to an end", LONG, || {
        let logs = [scene.tracker.stderr_text(), scene.peer.stderr_text()];
        logs.iter().all(|log| log.contains("a request took too long to come in"))
    });
    scene.serves_others();
    assert!(attack.end() > 0);
    for target in targets {
        target.wait_released();
    }
    scene.cut_off();
}
