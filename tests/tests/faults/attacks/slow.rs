//! Clients that do not read the replies, and clients that never complete a request.

use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;

use enjambre_core::protocol::codec::encode_request;
use enjambre_core::protocol::message::Request;
use enjambre_core::{FileId, RequestId};
use enjambre_tests::raw::RawConnection;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::{TIMEOUT, wait_for};

use super::scene::{Attack, Scene, attacker_address};

/// The number of addresses. Together the connections request far more than the node and the system queue for them; on
/// loopback the system queues a few MiB for each connection.
const ADDRESSES: usize = 4;
/// The number of connections from each address.
const PER_ADDRESS: usize = 24;
/// The minimum size of the receive buffer of a client.
const RECEIVE_BUFFER: usize = 2048;
/// The number of requests on each connection.
const PIECES: u32 = 64;
/// The number of slow writers for each node.
const WRITERS: usize = 48;
/// The maximum peak memory in MiB. Queued replies are limited to 32 MiB.
const MEMORY: u64 = 160;
/// No connection times out during the test; the budget of queued replies is shared from the start.
const LONG_TIMEOUT: &str = "transport.limits.stall_timeout=10min";
/// Stalled connections time out during the test.
const SHORT_TIMEOUT: &str = "transport.limits.stall_timeout=5s";

/// Opens a connection that requests many pieces and reads no reply.
fn connect_reader(endpoint: &str, from: Ipv4Addr, id: FileId) -> Option<RawConnection> {
    let mut raw = RawConnection::connect_from(endpoint, from, Some(RECEIVE_BUFFER)).ok()?;
    raw.handshake().ok()?;
    raw.stream.set_nonblocking(true).unwrap();
    let piece = |number: u32| Request::Piece { id, index: number % 32, super_seed: false };
    let requests = (0..PIECES)
        .flat_map(|number| raw.encode_message(&encode_request(RequestId(number.into()), &piece(number))));
    let requests: Vec<u8> = requests.collect();
    raw.stream.write_all(&requests).ok()?;
    Some(raw)
}

/// Whether the node has closed the connection, which a write detects.
fn is_closed(raw: &mut RawConnection) -> bool {
    raw.stream.write(&[0]).is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
}

/// Starts non-reading clients that reconnect after a disconnection. The attack counts the disconnections.
fn start_readers(endpoint: &str, id: FileId, per_address: usize) -> Attack {
    let endpoint = endpoint.to_owned();
    Attack::start(ADDRESSES, move |number, stop| {
        let mut connections: Vec<Option<RawConnection>> = (0..per_address).map(|_| None).collect();
        let mut disconnections = 0;
        loop {
            for connection in &mut connections {
                if connection.as_mut().is_some_and(is_closed) {
                    *connection = None;
                    disconnections += 1;
                }
                if connection.is_none() && !stop.is_stopped() {
                    *connection = connect_reader(&endpoint, attacker_address(number), id);
                }
            }
            if stop.pause() {
                return disconnections;
            }
        }
    })
}

fn check_bounded(wire: Wire) {
    let mut scene = Scene::new(wire, &[LONG_TIMEOUT]);
    let [_, target] = scene.targets();
    let attack = start_readers(&target.endpoint, scene.film(), PER_ADDRESS);
    wait_for("half of the connections", TIMEOUT, || {
        target.more_handles() >= (ADDRESSES * PER_ADDRESS / 2) as u64
    });
    for _ in 0..3 {
        scene.check_service();
    }
    assert_eq!(attack.stop(), 0, "a client was disconnected");
    target.wait_released();
    target.assert_memory(MEMORY);
    scene.check_service();
}

#[test]
fn non_reading_clients_over_tcp_are_bounded() {
    check_bounded(Wire::Tcp);
}

#[test]
fn non_reading_clients_over_zmq_are_bounded() {
    check_bounded(Wire::Zmq);
}

fn check_disconnected(wire: Wire) {
    let mut scene = Scene::new(wire, &[SHORT_TIMEOUT]);
    let [_, target] = scene.targets();
    let attack = start_readers(&target.endpoint, scene.film(), 1);
    wait_for("the write timeout", TIMEOUT, || scene.peer.stderr_text().contains("write timeout"));
    scene.check_service();
    assert!(attack.stop() > 0);
    target.wait_released();
    scene.aborted_connections();
}

#[test]
fn non_reading_client_over_tcp_is_disconnected() {
    check_disconnected(Wire::Tcp);
}

#[test]
fn non_reading_client_over_zmq_is_disconnected() {
    check_disconnected(Wire::Zmq);
}

/// Starts clients that write a maximum-size request byte by byte, and reconnect after a disconnection. The attack counts the
/// disconnections.
fn start_writers(endpoints: [String; 2], count: usize) -> Attack {
    Attack::start(2, move |number, stop| {
        let find = encode_request(RequestId(1), &Request::Find { query: "x".repeat(60_000) });
        let connect = || {
            let mut raw =
                RawConnection::connect_from(&endpoints[number], attacker_address(number), None).ok()?;
            raw.handshake().ok()?;
            let request = raw.encode_message(&find);
            Some((raw, request.into_iter()))
        };
        let mut writers: Vec<_> = (0..count).map(|_| None).collect();
        let mut disconnections = 0;
        while !stop.pause() {
            for writer in &mut writers {
                let Some((raw, request)) = writer else {
                    *writer = connect();
                    continue;
                };
                let byte = request.next().expect("the attack ends before the request");
                if raw.stream.write_all(&[byte]).is_err() {
                    *writer = None;
                    disconnections += 1;
                }
            }
        }
        disconnections
    })
}

/// In the default configuration trackers use ZeroMQ and peers use TCP.
#[test]
fn endless_requests_are_bounded() {
    let mut scene = Scene::new(Wire::Default, &[LONG_TIMEOUT]);
    let targets = scene.targets();
    let attack = start_writers(targets.clone().map(|target| target.endpoint), WRITERS);
    for target in &targets {
        wait_for("all connections", TIMEOUT, || target.more_handles() >= WRITERS as u64);
    }
    scene.check_service();
    assert_eq!(attack.stop(), 0, "a client was disconnected");
    for target in targets {
        target.wait_released();
        target.assert_memory(MEMORY);
    }
}

#[test]
fn endless_request_is_disconnected() {
    let mut scene = Scene::new(Wire::Default, &[SHORT_TIMEOUT]);
    let targets = scene.targets();
    let attack = start_writers(targets.clone().map(|target| target.endpoint), 1);
    wait_for("the request timeout", TIMEOUT, || {
        let logs = [scene.tracker.stderr_text(), scene.peer.stderr_text()];
        logs.iter().all(|log| log.contains("request timeout"))
    });
    scene.check_service();
    assert!(attack.stop() > 0);
    for target in targets {
        target.wait_released();
    }
    scene.aborted_connections();
}
