//! What only ZMTP makes possible.

use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope::{self, RequestId};
use enjambre_core::transport::error::TransportError;
use enjambre_transport::settings::TransportSettings;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::scene::{LARGE, Scene, call, header, soon};
use crate::spoken::{Side, Spoken};
use crate::zmtp::{self, MORE, Raw, Zmtp, message};

async fn set(settings: TransportSettings, size: usize) -> Scene {
    Scene::new::<Zmtp>(settings, size).await
}

async fn greeted(scene: &Scene, socket_type: &str) -> Raw {
    soon("a handshake", Raw::connect(&scene.address, socket_type, b"")).await
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

/// The client's guard takes payloads out of the stream and puts them back in their places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_odd_replies_must_not_shift_the_payloads_of_the_others() {
    const CALLS: u8 = 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("zmq://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&Zmtp::greeting(Side::Server)).await.unwrap();
        Zmtp::take_greeting(&mut stream).await.unwrap();
        let mut raw = Raw { stream };
        for number in 0..CALLS {
            let request = request(&mut raw).await;
            let nobody: &[u8] = &header(Some(1 << 40));
            let ping = zmtp::command(b"\x04PING\x00\x0a");
            let payload = vec![number; 1000 * usize::from(number)];
            let says = [
                message(&[&request[0], b"wrong", b"more"]),
                message(&[nobody, b"", b"wrong"]),
                message(&[b"", b"wrong"]),
                message(&[b"", b"", b""]),
                message(&[nobody, b""]),
                message(&[nobody]),
                zmtp::framed(MORE, &request[0]),
                ping,
                zmtp::framed(0, &payload),
                message(&[nobody, &vec![0; 50_000]]),
            ];
            raw.send_raw(&says.concat()).await;
        }
        let request = request(&mut raw).await;
        let begun = [zmtp::framed(MORE, &request[0]), zmtp::long_header(0, 40_000), vec![9; 20_000]];
        raw.send_raw(&begun.concat()).await;
    });
    let transport = Zmtp::transport(TransportSettings::default());
    let connection = transport.connect(&endpoint).await.unwrap();
    for number in 0..CALLS {
        let reply = soon("a reply", call(&*connection)).await.unwrap();
        assert!(reply.payload == vec![number; 1000 * usize::from(number)], "{number}");
    }
    // The buffer has been used before, and only half of it is filled again.
    let error = soon("the end of the call", call(&*connection)).await.unwrap_err();
    assert!(matches!(error, TransportError::Lost { .. }), "{error}");
    serving.await.unwrap();
}

/// The next request, past what a client may say otherwise.
async fn request(raw: &mut Raw) -> Vec<Bytes> {
    loop {
        if let zmtp::Next::Message(frames) = soon("a request", raw.next()).await {
            return frames;
        }
    }
}
