//! What a remote must not get away with over `zmq://`.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod scene;
mod zmtp;

use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope::{self, RequestId};
use enjambre_core::transport::error::TransportError;
use enjambre_transport::settings::TransportSettings;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use scene::{LARGE, Scene, call, closed, header, short_handshake, soon};
use zmtp::{MORE, Raw, greeting, ready};

async fn set(settings: TransportSettings, size: usize) -> Scene {
    Scene::new(enjambre_transport::zmq(settings).unwrap(), size).await
}

async fn greeted(scene: &Scene, socket_type: &str) -> Raw {
    soon("a handshake", Raw::connect(&scene.address, socket_type, b"")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giant_declared_lengths() {
    let scene = set(TransportSettings::default(), 0).await;
    for length in [1u64 << 40, 1 << 62, u64::MAX, 64 * 1024 + 1] {
        for flags in [0, MORE] {
            let mut raw = greeted(&scene, "DEALER").await;
            raw.send_raw(&zmtp::long_header(flags, length)).await;
            closed(&mut raw.stream).await;
        }
        // As a payload after a good header.
        if length > 5 << 20 {
            let mut raw = greeted(&scene, "DEALER").await;
            raw.frame(MORE, &header(Some(1))).await;
            raw.send_raw(&zmtp::long_header(0, length)).await;
            closed(&mut raw.stream).await;
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_half_greetings() {
    let scene = set(short_handshake(), 0).await;
    let whole = [greeting(3, b"NULL"), ready("DEALER", b"")].concat();
    for said in [0, 1, 10, 11, 63, 64, 66, 70, whole.len() - 1] {
        let mut stream = scene.connect().await;
        stream.write_all(&whole[..said]).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greetings_that_are_none() {
    let scene = set(TransportSettings::default(), 0).await;
    let null = greeting(3, b"NULL");
    let many = zmtp::command(&[&b"\x05READY"[..], &vec![0; 8000]].concat());
    let greetings: [Vec<u8>; 12] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 64],
        [&[0xff][..], &[0; 63]].concat(),
        greeting(2, b"NULL"),
        greeting(3, b"PLAIN"),
        greeting(3, b"CURVE"),
        greeting(3, b"NULLE"),
        [null.clone(), ready("PUB", b"")].concat(),
        [null.clone(), zmtp::command(b"\x05READY")].concat(),
        [null.clone(), zmtp::command(b"\x05READY\xff")].concat(),
        [null.clone(), b"\x00\x01x".to_vec()].concat(),
        [null, many].concat(),
    ];
    for said in greetings {
        let mut stream = scene.connect().await;
        stream.write_all(&said).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_frames() {
    let scene = set(TransportSettings::default(), 0).await;
    for body in [&[7u8; 60_000][..], &[7; 10], &[]] {
        let mut raw = greeted(&scene, "DEALER").await;
        let mut sent = 0;
        while raw.try_frame(MORE, body).await.is_ok() {
            sent += 1;
            assert!(sent < 1_000_000, "nobody stops it");
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asks_for_much_and_never_reads() {
    let settings = TransportSettings { stalled: Duration::from_millis(500), ..TransportSettings::default() };
    let limit = settings.queued_per_connection;
    let mut scene = set(settings, LARGE).await;
    let raw = greeted(&scene, "DEALER").await;
    let (mut from, mut to) = raw.stream.into_split();
    let asking = tokio::spawn(async move {
        let requests: Vec<u8> = (0..3000).flat_map(|id| zmtp::framed(0, &header(Some(id)))).collect();
        // Fails when it is cut off.
        let _ = to.write_all(&requests).await;
        to
    });
    let mut most = 0;
    let mut delivered = 0;
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
async fn many_who_never_read_leave_room_for_others() {
    let settings = TransportSettings { stalled: Duration::from_secs(1), ..TransportSettings::default() };
    let limit = settings.queued_in_all;
    let scene = set(settings, 4 << 20).await;
    let mut greedy = Vec::new();
    for _ in 0..10 {
        let mut raw = greeted(&scene, "DEALER").await;
        for id in 0..64 {
            raw.frame(0, &header(Some(id))).await;
        }
        greedy.push(raw);
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
async fn another_client_s_identity() {
    let scene = set(TransportSettings::default(), 0).await;
    // The identities that the guard gives, and one that two remotes claim.
    let mut first = Raw::connect(&scene.address, "DEALER", b"me").await;
    let mut impostors = Vec::new();
    for number in 0..8u64 {
        let identity = [&b"c"[..], &number.to_be_bytes()].concat();
        impostors.push(Raw::connect(&scene.address, "DEALER", &identity).await);
        impostors.push(Raw::connect(&scene.address, "DEALER", b"me").await);
    }
    for raw in impostors.iter_mut().chain([&mut first]) {
        raw.frame(0, &header(Some(5))).await;
        assert_eq!(soon("a reply", raw.message()).await, [header(Some(5))]);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_is_answered_with_its_context() {
    let scene = set(TransportSettings::default(), LARGE).await;
    let mut raw = greeted(&scene, "DEALER").await;
    for context in [&b""[..], b"0123456789abcdef"] {
        raw.send_raw(&zmtp::command(&[b"\x04PING\x00\x0a", context].concat())).await;
        assert_eq!(soon("PONG", raw.command()).await, [b"\x04PONG", context].concat());
    }
    // Between two frames of a request, and while replies are on their way: never within a reply.
    raw.frame(MORE, b"").await;
    raw.send_raw(&zmtp::command(b"\x04PING\x00\x0aab")).await;
    raw.frame(0, &header(Some(1))).await;
    let mut seen = (0, 0);
    while seen != (1, 1) {
        match soon("a reply and a PONG", raw.next()).await {
            zmtp::Next::Message(frames) => {
                assert_eq!((frames.len(), frames[0].len(), frames[2].len()), (3, 0, LARGE));
                seen.0 += 1;
            }
            zmtp::Next::Command(body) => {
                assert_eq!(body, b"\x04PONGab");
                seen.1 += 1;
            }
        }
    }
    // Other commands are no reason to go.
    raw.send_raw(&zmtp::command(b"\x09SUBSCRIBEx")).await;
    raw.send_raw(&zmtp::command(b"\x04PONG")).await;
    raw.frame(0, &header(Some(2))).await;
    assert_eq!(soon("a reply", raw.message()).await[0], header(Some(2)));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_pings_that_reads_nothing() {
    let settings = TransportSettings { stalled: Duration::from_millis(500), ..TransportSettings::default() };
    let scene = set(settings, LARGE).await;
    let mut raw = greeted(&scene, "DEALER").await;
    let pings: Vec<u8> = zmtp::command(b"\x04PING\x00\x0a0123456789abcdef").repeat(10_000);
    for id in 0..32 {
        raw.frame(0, &header(Some(id))).await;
    }
    let flood = async { while raw.stream.write_all(&pings).await.is_ok() {} };
    soon("cutting off who does not read", flood).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_connection_that_is_closed_is_noticed_at_once() {
    let transport = enjambre_transport::zmq(TransportSettings::default()).unwrap();
    let listener = transport.bind(&"zmq://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = format!("127.0.0.1:{}", listener.local_endpoint().port());
    let mut raw = Raw::connect(&address, "DEALER", b"").await;
    let requests: Vec<u8> = (0..2000).flat_map(|id| zmtp::framed(0, &header(Some(id)))).collect();
    raw.send_raw(&requests).await;
    scene::notices_the_end(&*transport, &*listener, raw.stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_allowed() {
    let settings =
        TransportSettings { connections_per_address: 5, connections: 100, ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    // One is the bystander's.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(greeted(&scene, "DEALER").await);
    }
    for _ in 0..10 {
        closed(&mut scene.connect().await).await;
    }
    assert_eq!(scene.transport.connections(), 5);
    // Who goes makes room.
    drop(held.pop());
    let again = async {
        while Raw::try_connect(&scene.address, "DEALER", b"").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("a place that is free again", again).await;
    drop(held);
    scene.end().await;

    let settings = TransportSettings { connections: 3, ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    let _held = (greeted(&scene, "DEALER").await, greeted(&scene, "REQ").await);
    closed(&mut scene.connect().await).await;
    drop(_held);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_req_gets_its_delimiter_back_and_an_answer_to_anything() {
    let scene = set(TransportSettings::default(), 100).await;
    let mut raw = greeted(&scene, "REQ").await;
    for id in 0..3 {
        raw.frame(MORE, b"").await;
        raw.frame(0, &header(Some(id))).await;
        let reply = soon("a reply", raw.message()).await;
        assert_eq!(reply, [Bytes::new(), header(Some(id)), Bytes::from(vec![7; 100])]);
    }
    // Not a header, no id, a payload, a large one: each is answered, and the connection lives.
    let payload = vec![1; LARGE];
    let wrong: [(&[&[u8]], Option<u64>); 6] = [
        (&[b""], None),
        (&[b"", b"garbage"], None),
        (&[b"", b""], None),
        (&[b"", &header(None)], None),
        (&[b"", &header(Some(8)), b"payload"], Some(8)),
        (&[b"", &header(Some(9)), &payload, b"", b"x"], Some(9)),
    ];
    for (frames, id) in wrong {
        for (at, frame) in frames.iter().enumerate() {
            raw.frame(if at + 1 < frames.len() { MORE } else { 0 }, frame).await;
        }
        let reply = soon("a reply", raw.message()).await;
        let header = reply.last().unwrap();
        assert_eq!(envelope::read(header).unwrap().id, id.map(RequestId), "{frames:?}");
        assert!(header.windows(9).any(|text| text == b"malformed"));
        assert_eq!(reply.len(), if frames.len() > 1 { 2 } else { 1 }, "the delimiter is returned");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_and_commands_that_break_zmtp() {
    let scene = set(TransportSettings::default(), 0).await;
    let broken: [Vec<u8>; 4] = [
        vec![0x08, 0],
        vec![0xff, 0xff],
        vec![0x05, 5, 4, b'P', b'I', b'N', b'G'],
        zmtp::long_header(0x04, 5000),
    ];
    for bytes in broken {
        let mut raw = greeted(&scene, "DEALER").await;
        raw.send_raw(&bytes).await;
        closed(&mut raw.stream).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_and_one_in_use_is_not() {
    let settings = TransportSettings { idle: Duration::from_millis(400), ..TransportSettings::default() };
    let scene = set(settings, 0).await;
    let mut raw = greeted(&scene, "DEALER").await;
    closed(&mut raw.stream).await;
    // Half a request keeps it no longer, nor does the delimiter of one.
    for begun in [&[0, 100, 1][..], &[MORE, 0], &[MORE, 1, b'x']] {
        let mut raw = greeted(&scene, "DEALER").await;
        raw.send_raw(begun).await;
        closed(&mut raw.stream).await;
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

/// A server that sends these bytes after the handshake and then waits to be left.
async fn hostile_server(says: Vec<u8>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("zmq://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut raw = Raw::greet(stream, "ROUTER", b"").await.unwrap();
        // Fails when the client has had enough.
        let _ = raw.stream.write_all(&says).await;
        closed(&mut raw.stream).await;
    });
    (endpoint, serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_survives_a_hostile_server() {
    let transport = enjambre_transport::zmq(TransportSettings::default()).unwrap();
    let header = header(Some(1));
    let says: [Vec<u8>; 6] = [
        zmtp::long_header(0, 1 << 40),
        zmtp::long_header(0, u64::MAX),
        [zmtp::framed(MORE, &header), zmtp::long_header(0, (4 << 20) + 1)].concat(),
        zmtp::framed(MORE, b"").repeat(9),
        b"\xff".to_vec(),
        // Replies that nobody asked for.
        zmtp::framed(0, &crate::scene::header(Some(77))).repeat(5000),
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
async fn a_server_that_says_nothing_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("zmq://{}", listener.local_addr().unwrap()).parse().unwrap();
    let transport = enjambre_transport::zmq(short_handshake()).unwrap();
    let connection = transport.connect(&endpoint).await.unwrap();
    let error = soon("the end of the call", call(&*connection)).await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
}
