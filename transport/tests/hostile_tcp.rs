//! What a remote must not get away with over `tcp://`.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod scene;

use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::Deadline;
use enjambre_core::transport::envelope::{self, RequestId};
use enjambre_core::transport::error::TransportError;
use enjambre_transport::settings::TransportSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use scene::{LARGE, PATIENCE, Scene, call, closed, header, short_handshake, soon};

const PREFACE: [u8; 8] = *b"\x8aENJTCP\x01";

async fn set(settings: TransportSettings, size: usize) -> Scene {
    Scene::new(enjambre_transport::tcp(settings).unwrap(), size).await
}

fn lengths(header: u32, payload: u32) -> Vec<u8> {
    [header.to_be_bytes(), payload.to_be_bytes()].concat()
}

fn frame(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let lengths = lengths(header.len().try_into().unwrap(), payload.len().try_into().unwrap());
    [&lengths, header, payload].concat()
}

fn request(id: u64) -> Vec<u8> {
    frame(&header(Some(id)), b"")
}

/// A client that has said its preface and read the other.
async fn greeted(scene: &Scene) -> TcpStream {
    let mut stream = scene.connect().await;
    stream.set_nodelay(true).unwrap();
    stream.write_all(&PREFACE).await.unwrap();
    let mut theirs = [0; 8];
    soon("a preface", stream.read_exact(&mut theirs)).await.unwrap();
    assert_eq!(theirs, PREFACE);
    stream
}

async fn reply(stream: &mut TcpStream) -> (Bytes, Bytes) {
    let reading = async {
        let (header, payload) = (stream.read_u32().await.unwrap(), stream.read_u32().await.unwrap());
        let mut parts = [vec![0; header as usize], vec![0; payload as usize]];
        for part in &mut parts {
            stream.read_exact(part).await.unwrap();
        }
        let [header, payload] = parts;
        (header.into(), payload.into())
    };
    soon("a reply", reading).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giant_declared_lengths() {
    let scene = set(TransportSettings::default(), 0).await;
    let (header, payload) = (64 * 1024, 4 << 20);
    for (header, payload) in [
        (u32::MAX, u32::MAX),
        (u32::MAX, 0),
        (1 << 31, 0),
        (header + 1, 0),
        (10, payload + 1),
        (10, u32::MAX),
        (0, 1 << 31),
    ] {
        let mut stream = greeted(&scene).await;
        stream.write_all(&lengths(header, payload)).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_half_prefaces() {
    let scene = set(short_handshake(), 0).await;
    for said in 0..PREFACE.len() {
        let mut stream = scene.connect().await;
        stream.write_all(&PREFACE[..said]).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefaces_that_are_none() {
    // They are told apart at once, so no limit on the time can be what ends them.
    let settings = TransportSettings { handshake: 2 * PATIENCE, ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    for said in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\xff", b"\x16\x03\x01\x02", b"\0", b"\x8aENJTCP\x02", b"\x8aENK"]
    {
        let mut stream = scene.connect().await;
        stream.write_all(said).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_right_behind_the_preface_are_answered() {
    let scene = set(TransportSettings::default(), 100).await;
    let mut stream = scene.connect().await;
    stream.write_all(&[&PREFACE[..], &request(1), &request(2)].concat()).await.unwrap();
    stream.read_exact(&mut [0; 8]).await.unwrap();
    let mut answered = [reply(&mut stream).await.0, reply(&mut stream).await.0];
    answered.sort();
    assert_eq!(answered, [header(Some(1)), header(Some(2))]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_byte_by_byte() {
    let scene = set(TransportSettings::default(), 10).await;
    let mut stream = greeted(&scene).await;
    for byte in [request(1), request(2)].concat() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        assert_eq!(reply(&mut stream).await.1, [7; 10][..]);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_malformed_is_answered_and_the_connection_lives() {
    let scene = set(TransportSettings::default(), 100).await;
    let mut stream = greeted(&scene).await;
    // No header, no CBOR, no id, a payload, a large one, a header as large as allowed that is garbage.
    let payload = vec![1; LARGE];
    let garbage = vec![0xff; 64 * 1024];
    let wrong: [(&[u8], &[u8], Option<u64>); 7] = [
        (b"", b"", None),
        (b"garbage", b"", None),
        (&header(None), b"", None),
        (&header(Some(8)), b"payload", Some(8)),
        (&header(Some(9)), &payload, Some(9)),
        (&garbage, b"", None),
        (b"", &payload, None),
    ];
    for (head, payload, id) in wrong {
        stream.write_all(&frame(head, payload)).await.unwrap();
        let (answer, payload) = reply(&mut stream).await;
        assert_eq!(envelope::read(&answer).unwrap().id, id.map(RequestId));
        assert!(answer.windows(9).any(|text| text == b"malformed") && payload.is_empty());
        stream.write_all(&request(5)).await.unwrap();
        assert_eq!(reply(&mut stream).await, (header(Some(5)), Bytes::from(vec![7; 100])));
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asks_for_much_and_never_reads() {
    let settings = TransportSettings { stalled: Duration::from_millis(500), ..TransportSettings::default() };
    let limit = settings.queued_per_connection;
    let mut scene = set(settings, LARGE).await;
    let (mut from, mut to) = greeted(&scene).await.into_split();
    let asking = tokio::spawn(async move {
        let requests: Vec<u8> = (0..3000).flat_map(request).collect();
        // Fails when it is cut off.
        let _ = to.write_all(&requests).await;
        to
    });
    let (mut most, mut delivered) = (0, 0);
    let mut bystander = None;
    let cut = async {
        while let Some((connection, result)) = scene.sent.recv().await {
            most = most.max(scene.transport.queued_reply_bytes());
            if *bystander.get_or_insert(connection) == connection {
                continue;
            }
            match result {
                Ok(()) => delivered += 1,
                Err(error) => return error,
            }
        }
        panic!("the service ended");
    };
    let error = soon("cutting off who does not read", cut).await;
    assert!(matches!(error, TransportError::Closed));
    assert!(most <= limit, "{most} bytes queued");
    assert!(delivered < 64, "{delivered} replies of 1 MiB to one who reads nothing");
    drop(asking);
    closed(&mut from).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asks_for_little_and_never_reads() {
    let settings = TransportSettings { stalled: Duration::from_millis(500), ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    let mut stream = greeted(&scene).await;
    let requests: Vec<u8> = (0..1000).flat_map(request).collect();
    let flood = async { while stream.write_all(&requests).await.is_ok() {} };
    soon("cutting off who does not read", flood).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_a_byte_now_and_then() {
    let settings = TransportSettings { stalled: Duration::from_millis(500), ..TransportSettings::default() };
    let scene = set(settings, 4 << 20).await;
    let mut stream = greeted(&scene).await;
    for id in 0..8 {
        stream.write_all(&request(id)).await.unwrap();
    }
    let mut some = [0; 16];
    let sipping = async {
        while stream.read(&mut some).await.is_ok_and(|read| read > 0) && scene.transport.connections() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("cutting off who takes too little", sipping).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_never_read_leave_room_for_others() {
    let settings = TransportSettings { stalled: Duration::from_secs(1), ..TransportSettings::default() };
    let limit = settings.queued_in_all;
    let scene = set(settings, 4 << 20).await;
    let mut greedy = Vec::new();
    for _ in 0..10 {
        let mut stream = greeted(&scene).await;
        stream.write_all(&(0..64).flat_map(request).collect::<Vec<u8>>()).await.unwrap();
        greedy.push(stream);
    }
    // Small replies go to the bystander all the time. Who wants large ones waits until those are cut off at most.
    let modest = scene.transport.connect(scene.listener.local_endpoint()).await.unwrap();
    for _ in 0..5 {
        assert_eq!(soon("a reply", call(&*modest)).await.unwrap().payload.len(), 4 << 20);
        assert!(scene.transport.queued_reply_bytes() <= limit);
    }
    drop(greedy);
    drop(modest);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_connection_that_is_closed_is_noticed_at_once() {
    let transport = enjambre_transport::tcp(TransportSettings::default()).unwrap();
    let listener = transport.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = ("127.0.0.1", listener.local_endpoint().port());
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&PREFACE).await.unwrap();
    stream.read_exact(&mut [0; 8]).await.unwrap();
    stream.write_all(&(0..2000).flat_map(request).collect::<Vec<u8>>()).await.unwrap();
    scene::notices_the_end(&*transport, &*listener, stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_allowed() {
    let settings =
        TransportSettings { connections_per_address: 5, connections: 100, ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    // One is the bystander's.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(greeted(&scene).await);
    }
    for _ in 0..10 {
        closed(&mut scene.connect().await).await;
    }
    assert_eq!(scene.transport.connections(), 5);
    drop(held);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_and_one_in_use_is_not() {
    let settings = TransportSettings { idle: Duration::from_millis(400), ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    closed(&mut greeted(&scene).await).await;
    // Half a request keeps it no longer.
    for begun in [&[0][..], &lengths(100, 0), &request(1)[..20], &lengths(0, 100)] {
        let mut stream = greeted(&scene).await;
        stream.write_all(begun).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_idle_dials_again_without_a_lost_call() {
    let settings = TransportSettings { idle: Duration::from_millis(100), ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    let connection = scene.transport.connect(scene.listener.local_endpoint()).await.unwrap();
    for _ in 0..4 {
        soon("a reply", call(&*connection)).await.expect("no call is lost");
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    scene.end().await;
}

/// A server that sends these bytes after the preface and then waits to be left.
async fn hostile_server(says: Vec<u8>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&PREFACE).await.unwrap();
        // Fails when the client has had enough.
        let _ = stream.write_all(&says).await;
        closed(&mut stream).await;
    });
    (endpoint, serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_survives_a_hostile_server() {
    let transport = enjambre_transport::tcp(TransportSettings::default()).unwrap();
    let says: [Vec<u8>; 5] = [
        lengths(u32::MAX, 0),
        lengths(64 * 1024 + 1, 0),
        [lengths(10, (4 << 20) + 1), vec![0; 10]].concat(),
        // Replies that nobody asked for, without and with payloads.
        frame(&header(Some(77)), b"").repeat(5000),
        frame(&header(Some(77)), &[7; 10_000]).repeat(2000),
    ];
    for says in says {
        let (endpoint, serving) = hostile_server(says).await;
        let connection = transport.connect(&endpoint.parse().unwrap()).await.unwrap();
        let error = soon("the end of the call", call(&*connection)).await.unwrap_err();
        // It may be known before the call is sent.
        let known = matches!(error, TransportError::Lost { .. } | TransportError::Unreachable { .. });
        assert!(known, "{error}");
        soon("the end of the server", serving).await.unwrap();
        // What went wrong before any reply is not tried again at once.
        let error = soon("the end of the call", call(&*connection)).await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_stops_halfway_is_silence() {
    let declared = lengths(u32::try_from(header(Some(1)).len()).unwrap(), 1 << 20);
    let (endpoint, serving) = hostile_server([&declared, &header(Some(1))[..], &[7; 1000]].concat()).await;
    let transport = enjambre_transport::tcp(TransportSettings::default()).unwrap();
    let connection = transport.connect(&endpoint.parse().unwrap()).await.unwrap();
    let id = connection.next_id();
    let silence = Deadline::Silence(Duration::from_millis(200));
    let call = connection.call(id, header(Some(id.0)), silence);
    let error = soon("the deadline", call).await.unwrap_err();
    assert!(matches!(error, TransportError::Deadline { .. }), "{error}");
    drop(connection);
    soon("the end of the server", serving).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_or_something_else_is_unreachable() {
    let transport = enjambre_transport::tcp(short_handshake()).unwrap();
    for says in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
        let accepting = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(says).await.unwrap();
            closed(&mut stream).await;
        });
        let connection = transport.connect(&endpoint).await.unwrap();
        let error = soon("the end of the call", call(&*connection)).await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
        soon("being left", accepting).await.unwrap();
    }
}
