//! Attacks that are specific to ZMTP.

use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope;
use enjambre_core::{RequestId, TransportError};
use enjambre_transport::settings::TransportSettings;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::fixture::{Fixture, LARGE, call, in_time, reply, request};
use crate::raw_protocol::{RawProtocol, Side};
use crate::raw_zmtp::{self as zmtp, MORE, Raw, RawZmtp, message};

async fn start(settings: TransportSettings, size: usize) -> Fixture {
    Fixture::new::<RawZmtp>(settings, size).await
}

async fn greeted(fixture: &Fixture, socket_type: &str) -> Raw {
    in_time("handshake", Raw::connect(&fixture.address, socket_type, b"")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_message_is_rejected() {
    let fixture = start(TransportSettings::default(), 0).await;
    for body in [&[7u8; 60_000][..], &[7; 10], &[]] {
        let mut raw = greeted(&fixture, "DEALER").await;
        let mut sent = 0;
        while raw.try_frame(MORE, body).await.is_ok() {
            sent += 1;
            assert!(sent < 1_000_000, "the message is accepted without end");
        }
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claimed_identity_is_ignored() {
    let fixture = start(TransportSettings::default(), 0).await;
    // The identities that the guard assigns, and one that two remotes claim.
    let mut first = Raw::connect(&fixture.address, "DEALER", b"me").await;
    let mut impostors = Vec::new();
    for number in 0..8u64 {
        let identity = [&b"c"[..], &number.to_be_bytes()].concat();
        impostors.push(Raw::connect(&fixture.address, "DEALER", &identity).await);
        impostors.push(Raw::connect(&fixture.address, "DEALER", b"me").await);
    }
    for raw in impostors.iter_mut().chain([&mut first]) {
        raw.frame(0, &request(5)).await;
        assert_eq!(in_time("reply", raw.message()).await, [reply(5)]);
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_is_answered_with_its_context() {
    let fixture = start(TransportSettings::default(), LARGE).await;
    let mut raw = greeted(&fixture, "DEALER").await;
    for context in [&b""[..], b"0123456789abcdef"] {
        raw.send_raw(&zmtp::command(&[b"\x04PING\x00\x0a", context].concat())).await;
        assert_eq!(in_time("PONG", raw.command()).await, [b"\x04PONG", context].concat());
    }
    // A PING between two frames of a request, while replies are being sent. Its PONG is not sent within a reply.
    raw.frame(MORE, b"").await;
    raw.send_raw(&zmtp::command(b"\x04PING\x00\x0aab")).await;
    raw.frame(0, &request(1)).await;
    let mut seen = (0, 0);
    while seen != (1, 1) {
        match in_time("reply and PONG", raw.next()).await {
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
    // Other commands are ignored.
    raw.send_raw(&zmtp::command(b"\x09SUBSCRIBEx")).await;
    raw.send_raw(&zmtp::command(b"\x04PONG")).await;
    raw.frame(0, &request(2)).await;
    assert_eq!(in_time("reply", raw.message()).await[0], reply(2));
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_pings_without_reading_is_closed() {
    let settings =
        TransportSettings { stall_timeout: Duration::from_millis(500), ..TransportSettings::default() };
    let fixture = start(settings, LARGE).await;
    let mut raw = greeted(&fixture, "DEALER").await;
    let pings: Vec<u8> = zmtp::command(b"\x04PING\x00\x0a0123456789abcdef").repeat(10_000);
    for id in 0..32 {
        raw.frame(0, &request(id)).await;
    }
    let flood = async { while raw.stream.write_all(&pings).await.is_ok() {} };
    in_time("end of the connection", flood).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn req_socket_gets_delimiter_and_reply_to_each_request() {
    let fixture = start(TransportSettings::default(), 100).await;
    let mut raw = greeted(&fixture, "REQ").await;
    for id in 0..3 {
        raw.frame(MORE, b"").await;
        raw.frame(0, &request(id)).await;
        let expected = [Bytes::new(), reply(id), Bytes::from(vec![7; 100])];
        assert_eq!(in_time("reply", raw.message()).await, expected);
    }
    // No header, no id, a payload, a large payload: each request is answered, and the connection remains open.
    let (payload, without_id) = (vec![1; LARGE], envelope::malformed_reply(None, ""));
    let malformed: [(&[&[u8]], Option<u64>); 6] = [
        (&[b""], None),
        (&[b"", b"garbage"], None),
        (&[b"", b""], None),
        (&[b"", &without_id], None),
        (&[b"", &request(8), b"payload"], Some(8)),
        (&[b"", &request(9), &payload, b"", b"x"], Some(9)),
    ];
    for (frames, id) in malformed {
        for (at, frame) in frames.iter().enumerate() {
            raw.frame(if at + 1 < frames.len() { MORE } else { 0 }, frame).await;
        }
        let reply = in_time("reply", raw.message()).await;
        let header = reply.last().unwrap();
        assert_eq!(envelope::id_of(header), id.map(RequestId), "{frames:?}");
        assert!(header.windows(9).any(|text| text == b"malformed"));
        assert_eq!(reply.len(), if frames.len() > 1 { 2 } else { 1 }, "the delimiter is returned");
    }
    fixture.end().await;
}

/// The guard of the client assigns each payload to its own reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_replies_do_not_shift_payloads_of_others() {
    const CALLS: u8 = 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("zmq://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&RawZmtp::greeting(Side::Server)).await.unwrap();
        RawZmtp::take_greeting(&mut stream).await.unwrap();
        let mut raw = Raw { stream };
        for number in 0..CALLS {
            let request = next_request(&mut raw).await;
            let without_call: &[u8] = &reply(1 << 40);
            let ping = zmtp::command(b"\x04PING\x00\x0a");
            let payload = vec![number; 1000 * usize::from(number)];
            let messages = [
                message(&[&request[0], b"wrong", b"more"]),
                message(&[without_call, b"", b"wrong"]),
                message(&[b"", b"wrong"]),
                message(&[b"", b"", b""]),
                message(&[without_call, b""]),
                message(&[without_call]),
                zmtp::framed(MORE, &request[0]),
                ping,
                zmtp::framed(0, &payload),
                message(&[without_call, &vec![0; 50_000]]),
            ];
            raw.send_raw(&messages.concat()).await;
        }
        let request = next_request(&mut raw).await;
        let truncated = [zmtp::framed(MORE, &request[0]), zmtp::long_header(0, 40_000), vec![9; 20_000]];
        raw.send_raw(&truncated.concat()).await;
    });
    let transport = RawZmtp::transport(TransportSettings::default());
    let connection = transport.connect(&endpoint).await.unwrap();
    for number in 0..CALLS {
        let reply = in_time("reply", call(&*connection)).await.unwrap();
        assert!(reply.payload == vec![number; 1000 * usize::from(number)], "{number}");
    }
    // The buffer of the truncated payload was used before.
    let error = in_time("end of the call", call(&*connection)).await.unwrap_err();
    assert!(matches!(error, TransportError::Lost { .. }), "{error}");
    serving.await.unwrap();
}

/// Returns the next request, and skips commands.
async fn next_request(raw: &mut Raw) -> Vec<Bytes> {
    loop {
        if let zmtp::Next::Message(frames) = in_time("request", raw.next()).await {
            return frames;
        }
    }
}
