//! Incomplete TLS handshakes. `hostile.rs` covers plaintext handshakes.

use std::io::{Read, Write};
use std::net::TcpListener;

use bytes::Bytes;
use enjambre_core::{Deadline, Endpoint, KeyPair};
use enjambre_tests::raw::RawConnection;
use enjambre_tests::setup::Wire;
use enjambre_tests::wait::TIMEOUT;
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use tokio::runtime::Builder;

use super::scene::{Scene, attacker_address};

/// The size of a TLS record header: type, version and length.
const HEADER: usize = 5;
/// The maximum size of a record.
const RECORD: usize = 1 << 14;
/// The number of connections for each incomplete handshake.
const TIMES: usize = 6;
/// The maximum peak memory in MiB.
const MEMORY: u64 = 128;

/// Returns the first TLS record of a node that opens a connection.
fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint: Endpoint = format!("tcps://{}@127.0.0.1:{port}", "ab".repeat(32)).parse().unwrap();
    let [tcps, _] = Shared::new(TransportSettings::default()).unwrap().secure(&KeyPair::generate());
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        let connection = tcps.connect(&endpoint).await.unwrap();
        let id = connection.next_id();
        // The call fails because the listener does not reply.
        let _ = connection.call(id, Bytes::from_static(b"\xa0"), Deadline::Total(TIMEOUT)).await;
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut hello = vec![0; HEADER];
    stream.read_exact(&mut hello).unwrap();
    let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
    hello.resize(HEADER + length, 0);
    stream.read_exact(&mut hello[HEADER..]).unwrap();
    runtime.shutdown_background();
    hello
}

/// Encodes a TLS record.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3][..], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn incomplete_handshakes() -> Vec<Vec<u8>> {
    let hello = client_hello();
    // Declares 16 MiB; the node closes the connection before all of it is sent.
    let mut endless = record(22, &[&[1, 0xff, 0xff, 0xff][..], &[0; RECORD - 4]].concat());
    endless.extend(record(22, &[0; RECORD]).repeat(64));
    let mut handshakes: Vec<Vec<u8>> = [0, 1, HEADER, HEADER + 1, hello.len() / 2, hello.len() - 1]
        .map(|length| hello[..length].to_vec())
        .into();
    handshakes.extend([
        hello.clone(),
        [&hello[..], &hello].concat(),
        [&hello[..], &record(23, &[7; RECORD])].concat(),
        // Many records without effect, and many empty records.
        [&hello[..], &record(20, &[1]).repeat(1000)].concat(),
        [&hello[..], &record(22, &[]).repeat(1000)].concat(),
        vec![22, 3, 1, 0xff, 0xff],
        endless,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
    ]);
    handshakes
}

#[test]
fn half_tls_handshakes_leave_service_available() {
    let handshakes = incomplete_handshakes();
    let mut scene = Scene::new(Wire::Secure, &[]);
    let targets = scene.targets();
    let mut held = Vec::new();
    for (target, handshake) in
        targets.iter().flat_map(|target| handshakes.iter().map(move |each| (target, each)))
    {
        for _ in 0..TIMES {
            let mut raw =
                RawConnection::connect_from(&target.endpoint, attacker_address(held.len() / 60), None)
                    .unwrap();
            // The connection may be closed before the write completes.
            let _ = raw.stream.write_all(handshake);
            held.push(raw);
        }
    }
    scene.check_service();
    for raw in &mut held {
        raw.wait_closed();
    }
    for target in targets {
        target.wait_released();
        target.assert_memory(MEMORY);
    }
    scene.check_service();
    for lines in scene.aborted_connections() {
        assert!(!lines.is_empty());
    }
}
