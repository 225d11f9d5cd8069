//! Hands that are shaken halfway, over TLS; what is not encrypted is in `hostile.rs`.

use std::io::{Read, Write};
use std::net::TcpListener;

use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::transport::Deadline;
use enjambre_tests::node::Wire;
use enjambre_tests::raw::Raw;
use enjambre_tests::wait::LONG;
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use tokio::runtime::Builder;

use crate::scene::{Scene, stranger};

/// The head of a TLS record: what is in it, a version, and its length.
const HEAD: usize = 5;
/// The largest record that there may be.
const RECORD: usize = 1 << 14;
/// How often each of them is tried at the same time.
const TIMES: usize = 6;
/// In MiB.
const MEMORY: u64 = 128;

/// What a node says first when it dials another one.
fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint: Endpoint = format!("tcps://{}@127.0.0.1:{port}", "ab".repeat(32)).parse().unwrap();
    let [tcps, _] = Shared::new(TransportSettings::default()).unwrap().secure(&KeyPair::generate());
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        let connection = tcps.connect(&endpoint).await.unwrap();
        let id = connection.next_id();
        // Nobody answers.
        let _ = connection.call(id, Bytes::from_static(b"\xa0"), Deadline::Total(LONG)).await;
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut hello = vec![0; HEAD];
    stream.read_exact(&mut hello).unwrap();
    let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
    hello.resize(HEAD + length, 0);
    stream.read_exact(&mut hello[HEAD..]).unwrap();
    runtime.shutdown_background();
    hello
}

/// A record of this kind.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3][..], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn halves() -> Vec<Vec<u8>> {
    let hello = client_hello();
    // It declares 16 MiB, and is sent as far as it is taken.
    let mut endless = record(22, &[&[1, 0xff, 0xff, 0xff][..], &[0; RECORD - 4]].concat());
    endless.extend(record(22, &[0; RECORD]).repeat(64));
    let mut halves: Vec<Vec<u8>> =
        [0, 1, HEAD, HEAD + 1, hello.len() / 2, hello.len() - 1].map(|said| hello[..said].to_vec()).into();
    halves.extend([
        hello.clone(),
        [&hello[..], &hello].concat(),
        [&hello[..], &record(23, &[7; RECORD])].concat(),
        // Nothing that means anything, and of no length at all, again and again.
        [&hello[..], &record(20, &[1]).repeat(1000)].concat(),
        [&hello[..], &record(22, &[]).repeat(1000)].concat(),
        vec![22, 3, 1, 0xff, 0xff],
        endless,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
    ]);
    halves
}

#[test]
fn half_a_handshake_over_tls() {
    let halves = halves();
    let mut scene = Scene::new(Wire::Secure, &[]);
    let targets = scene.targets();
    let mut held = Vec::new();
    for (target, half) in targets.iter().flat_map(|target| halves.iter().map(move |half| (target, half))) {
        for _ in 0..TIMES {
            let mut raw = Raw::connect_from(&target.endpoint, stranger(held.len() / 60), None).unwrap();
            // It may be closed before all of it was said.
            let _ = raw.stream.write_all(half);
            held.push(raw);
        }
    }
    scene.serves_others();
    for raw in &mut held {
        raw.wait_closed();
    }
    for target in targets {
        target.wait_released();
        target.assert_memory(MEMORY);
    }
    scene.serves_others();
    for lines in scene.cut_off() {
        assert!(!lines.is_empty());
    }
}
