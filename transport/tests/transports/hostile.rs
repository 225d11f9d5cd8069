//! Hostile remotes: plain sockets against a listener that must keep serving a reference client.
//!
//! Each attack runs over all schemes. A test waits for an event (the end of the connection, a reply) instead of a time, and
//! finally checks that the reference client was served all the time.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope;
use enjambre_core::{Deadline, Endpoint, Message, RequestId, TransportError};
use enjambre_transport::settings::TransportSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::fixture::{
    Fixture, LARGE, TIMEOUT, call, closed, greeted, greeted_from, in_time, listen, reply, request,
    short_handshake, until,
};
use crate::raw_protocol::{RawProtocol, Side, requests};

/// Runs each attack over all schemes.
macro_rules! attacks {
    ($($attack:ident)*) => {
        attacks! { @over over_tcp, crate::raw_tcp::RawTcp: $($attack)* }
        attacks! { @over over_zmq, crate::raw_zmtp::RawZmtp: $($attack)* }
        attacks! { @over over_tcps, crate::raw_tls::RawTls<crate::raw_tcp::RawTcp>: $($attack)* }
        attacks! { @over over_zmqs, crate::raw_tls::RawTls<crate::raw_zmtp::RawZmtp>: $($attack)* }
    };
    (@over $module:ident, $protocol:ty: $($attack:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $attack() {
                    super::$attack::<$protocol>().await;
                }
            )*
        }
    };
}

attacks! {
    violation_of_framing_or_limit_ends_the_connection
    incomplete_greeting_is_closed_after_the_timeout
    other_protocol_is_closed_immediately
    requests_directly_after_the_greeting_are_answered
    requests_in_single_bytes_are_answered
    malformed_request_is_answered
    large_replies_without_reading_are_closed
    small_replies_without_reading_are_closed
    reading_single_bytes_is_closed
    sending_single_bytes_is_closed
    stalled_connections_leave_budget_for_others
    stalled_connections_leave_budget_for_another_address
    end_of_a_full_connection_is_detected_immediately
    connections_above_the_limit_are_refused
    only_idle_connections_are_closed
    idle_client_reconnects_without_a_lost_call
    invalid_replies_end_the_connection
    truncated_payload_is_silence
    silent_or_wrong_server_is_unreachable
}

fn stall_timeout(millis: u64) -> TransportSettings {
    TransportSettings { stall_timeout: Duration::from_millis(millis), ..TransportSettings::default() }
}

async fn violation_of_framing_or_limit_ends_the_connection<S: RawProtocol>() {
    let fixture = Fixture::new::<S>(TransportSettings::default(), 0).await;
    for broken in S::broken_requests() {
        let mut stream = greeted::<S>(&fixture.address).await;
        stream.write_all(&broken).await.unwrap();
        closed(&mut stream).await;
    }
    fixture.end().await;
}

async fn incomplete_greeting_is_closed_after_the_timeout<S: RawProtocol>() {
    let fixture = Fixture::new::<S>(short_handshake(), 0).await;
    let greeting = S::greeting(Side::Client);
    let mut streams = Vec::new();
    for length in S::half_greetings() {
        let mut stream = fixture.connect::<S>().await;
        stream.write_all(&greeting[..length]).await.unwrap();
        streams.push(stream);
    }
    for mut stream in streams {
        closed(&mut stream).await;
    }
    fixture.end().await;
}

async fn other_protocol_is_closed_immediately<S: RawProtocol>() {
    // The timeout is too long to end the connections.
    let settings = TransportSettings { handshake_timeout: 2 * TIMEOUT, ..TransportSettings::default() };
    let fixture = Fixture::new::<S>(settings, 0).await;
    for greeting in S::false_greetings() {
        let mut stream = fixture.connect::<S>().await;
        stream.write_all(&greeting).await.unwrap();
        closed(&mut stream).await;
    }
    fixture.end().await;
}

async fn requests_directly_after_the_greeting_are_answered<S: RawProtocol>() {
    let fixture = Fixture::new::<S>(TransportSettings::default(), 100).await;
    let mut stream = fixture.connect::<S>().await;
    stream.write_all(&[S::greeting(Side::Client), requests::<S>(1..3)].concat()).await.unwrap();
    in_time("greeting", S::take_greeting(&mut stream)).await.unwrap();
    let mut answered = [read_reply::<S>(&mut stream).await.0, read_reply::<S>(&mut stream).await.0];
    answered.sort();
    assert_eq!(answered, [reply(1), reply(2)]);
    fixture.end().await;
}

async fn requests_in_single_bytes_are_answered<S: RawProtocol>() {
    let fixture = Fixture::new::<S>(TransportSettings::default(), 10).await;
    let mut stream = greeted::<S>(&fixture.address).await;
    for byte in requests::<S>(1..3) {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        assert_eq!(read_reply::<S>(&mut stream).await.1, [7; 10][..]);
    }
    fixture.end().await;
}

async fn read_reply<S: RawProtocol>(stream: &mut TcpStream) -> (Bytes, Bytes) {
    in_time("reply", S::reply(stream)).await
}

async fn malformed_request_is_answered<S: RawProtocol>() {
    let fixture = Fixture::new::<S>(TransportSettings::default(), 100).await;
    let mut stream = greeted::<S>(&fixture.address).await;
    for (request, id) in S::malformed_requests() {
        stream.write_all(&request).await.unwrap();
        let (answer, payload) = read_reply::<S>(&mut stream).await;
        assert_eq!(envelope::id_of(&answer), id.map(RequestId));
        assert!(answer.windows(9).any(|text| text == b"malformed") && payload.is_empty());
        stream.write_all(&S::request(5)).await.unwrap();
        assert_eq!(read_reply::<S>(&mut stream).await, (reply(5), Bytes::from(vec![7; 100])));
    }
    fixture.end().await;
}

async fn large_replies_without_reading_are_closed<S: RawProtocol>() {
    let settings = stall_timeout(500);
    let limit = settings.queued_per_connection;
    let mut fixture = Fixture::new::<S>(settings, LARGE).await;
    let (mut from, mut to) = greeted::<S>(&fixture.address).await.into_split();
    let asking = tokio::spawn(async move {
        // Fails when the connection is closed.
        let _ = to.write_all(&requests::<S>(0..3000)).await;
        to
    });
    let (mut most, mut delivered) = (0, 0);
    let mut reference = None;
    let refused = async {
        while let Some((connection, result)) = fixture.sent.recv().await {
            most = most.max(fixture.transport.queued_reply_bytes());
            if *reference.get_or_insert(connection) == connection {
                continue;
            }
            match result {
                Ok(()) => delivered += 1,
                Err(error) => return error,
            }
        }
        panic!("the service ended");
    };
    let error = in_time("end of the connection", refused).await;
    assert!(matches!(error, TransportError::Closed));
    assert!(most <= limit, "{most} bytes queued");
    assert!(delivered < 64, "{delivered} replies of 1 MiB to a remote that reads nothing");
    drop(asking);
    closed(&mut from).await;
    fixture.end().await;
}

async fn small_replies_without_reading_are_closed<S: RawProtocol>() {
    // Few replies fill the socket buffers, which have several MiB over a relay.
    let fixture = Fixture::replying::<S>(stall_timeout(500), "x".repeat(1024), 0).await;
    let mut stream = greeted::<S>(&fixture.address).await;
    let requests = requests::<S>(0..1000);
    let flood = async { while stream.write_all(&requests).await.is_ok() {} };
    in_time("end of the connection", flood).await;
    fixture.end().await;
}

async fn reading_single_bytes_is_closed<S: RawProtocol>() {
    let fixture = Fixture::new::<S>(stall_timeout(500), 4 << 20).await;
    let mut stream = greeted::<S>(&fixture.address).await;
    stream.write_all(&requests::<S>(0..8)).await.unwrap();
    let mut some = [0; 16];
    let reading = async {
        while stream.read(&mut some).await.is_ok_and(|read| read > 0) && fixture.transport.connections() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time("end of the connection", reading).await;
    fixture.end().await;
}

async fn sending_single_bytes_is_closed<S: RawProtocol>() {
    let fixture = Fixture::new::<S>(stall_timeout(500), 0).await;
    let mut stream = greeted::<S>(&fixture.address).await;
    stream.write_all(&S::begun_requests()[0]).await.unwrap();
    // The request would be complete after several seconds.
    let sending = async {
        while fixture.transport.connections() > 1 && stream.write_all(b"\0").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    in_time("end of the connection", sending).await;
    closed(&mut stream).await;
    fixture.end().await;
}

/// Connections that request more than the reply budget and read nothing.
async fn greedy<S: RawProtocol>(fixture: &Fixture, from: Ipv4Addr) -> Vec<TcpStream> {
    let mut greedy = Vec::new();
    for _ in 0..10 {
        let mut stream = greeted_from::<S>(from, &fixture.address).await;
        stream.write_all(&requests::<S>(0..64)).await.unwrap();
        greedy.push(stream);
    }
    greedy
}

async fn stalled_connections_leave_budget_for_others<S: RawProtocol>() {
    let settings = stall_timeout(1000);
    let limit = settings.queued_total;
    let fixture = Fixture::new::<S>(settings, 4 << 20).await;
    let greedy = greedy::<S>(&fixture, Ipv4Addr::LOCALHOST).await;
    // The reference client gets small replies all the time. Large replies wait for the write timeout of the others at most.
    let modest = fixture.transport.connect(fixture.listener.local_endpoint()).await.unwrap();
    for _ in 0..5 {
        assert_eq!(in_time("reply", call(&*modest)).await.unwrap().payload.len(), 4 << 20);
        assert!(fixture.transport.queued_reply_bytes() <= limit);
    }
    drop(greedy);
    drop(modest);
    fixture.end().await;
}

async fn stalled_connections_leave_budget_for_another_address<S: RawProtocol>() {
    // Other systems have only one loopback address.
    if !cfg!(target_os = "linux") {
        return;
    }
    // No connection reaches the write timeout.
    let settings = TransportSettings { stall_timeout: 10 * TIMEOUT, ..TransportSettings::default() };
    let (limit, half) = (settings.queued_total, settings.queued_total / 2);
    let fixture = Fixture::new::<S>(settings, 4 << 20).await;
    let greedy = greedy::<S>(&fixture, Ipv4Addr::new(127, 0, 0, 2)).await;
    until("exhausted budget", || fixture.transport.queued_reply_bytes() > half / 2).await;
    let modest = fixture.transport.connect(fixture.listener.local_endpoint()).await.unwrap();
    for _ in 0..5 {
        assert_eq!(in_time("reply", call(&*modest)).await.unwrap().payload.len(), 4 << 20);
        assert!(fixture.transport.queued_reply_bytes() <= limit);
    }
    drop(greedy);
    drop(modest);
    fixture.end().await;
}

/// A connection at the limit of outstanding requests is not read.
async fn end_of_a_full_connection_is_detected_immediately<S: RawProtocol>() {
    let transport = S::transport(TransportSettings::default());
    let (listener, address) = listen(&*transport).await;
    let mut stream = greeted::<S>(&address).await;
    stream.write_all(&requests::<S>(0..2000)).await.unwrap();
    let mut held = Vec::new();
    while held.len() < TransportSettings::default().in_flight {
        held.push(in_time("request", listener.accept()).await.unwrap());
    }
    drop(stream);
    until("end of the connection", || transport.connections() == 0).await;
    for mut held in held {
        assert!(matches!(held.reply.reserve(0).await, Err(TransportError::Closed)));
    }
}

async fn connections_above_the_limit_are_refused<S: RawProtocol>() {
    let per_address =
        TransportSettings { connections_per_address: 5, connections: 100, ..TransportSettings::default() };
    let total = TransportSettings { connections: 5, ..TransportSettings::default() };
    for settings in [per_address, total] {
        let fixture = Fixture::new::<S>(settings, 0).await;
        // One connection belongs to the reference client.
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(greeted::<S>(&fixture.address).await);
        }
        for _ in 0..10 {
            closed(&mut fixture.connect::<S>().await).await;
        }
        assert_eq!(fixture.transport.connections(), 5);
        // Closing a connection admits another one.
        drop(held.pop());
        until("end of a connection", || fixture.transport.connections() < 5).await;
        held.push(greeted::<S>(&fixture.address).await);
        drop(held);
        fixture.end().await;
    }
}

async fn only_idle_connections_are_closed<S: RawProtocol>() {
    let settings =
        TransportSettings { idle_timeout: Duration::from_millis(400), ..TransportSettings::default() };
    let transport = S::transport(settings);
    let (listener, address) = listen(&*transport).await;
    let mut used = greeted::<S>(&address).await;
    used.write_all(&S::request(1)).await.unwrap();
    let held = in_time("request", listener.accept()).await.unwrap();
    // An incomplete request does not keep a connection open.
    let mut streams = Vec::new();
    for begun in [vec![vec![]], S::begun_requests()].concat() {
        let mut stream = greeted::<S>(&address).await;
        stream.write_all(&begun).await.unwrap();
        streams.push(stream);
    }
    for mut stream in streams {
        closed(&mut stream).await;
    }
    // The connection with an outstanding request had no traffic for longer than the others.
    let answer = Message { header: reply(1), payload: Bytes::new() };
    held.reply.send(answer).await.unwrap();
    assert_eq!(read_reply::<S>(&mut used).await.0, reply(1));
}

async fn idle_client_reconnects_without_a_lost_call<S: RawProtocol>() {
    let mut fixture = Fixture::new::<S>(TransportSettings::default(), 0).await;
    // The timeout of the server is much longer.
    let settings =
        TransportSettings { idle_timeout: Duration::from_millis(50), ..TransportSettings::default() };
    let client = S::transport(settings);
    let connection = client.connect(fixture.listener.local_endpoint()).await.unwrap();
    let (reference, _) = in_time("call of the reference client", fixture.sent.recv()).await.unwrap();
    let mut used = HashSet::new();
    for _ in 0..4 {
        in_time("reply", call(&*connection)).await.expect("no call is lost");
        until("client closes the connection", || fixture.transport.connections() == 1).await;
        while let Ok((connection, _)) = fixture.sent.try_recv() {
            used.insert(connection);
        }
    }
    used.remove(&reference);
    assert_eq!(used.len(), 4, "a new connection each time");
    fixture.end().await;
}

/// A server that sends these bytes after the greeting, and waits for the end of the connection.
async fn hostile_server<S: RawProtocol>(bytes: Vec<u8>) -> (Endpoint, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = S::endpoint(&listener.local_addr().unwrap().to_string());
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = S::accepted(stream).await;
        stream.write_all(&S::greeting(Side::Server)).await.unwrap();
        S::take_greeting(&mut stream).await.unwrap();
        // Fails when the client closes the connection.
        let _ = stream.write_all(&bytes).await;
        closed(&mut stream).await;
    });
    (endpoint, serving)
}

async fn invalid_replies_end_the_connection<S: RawProtocol>() {
    let transport = S::transport(TransportSettings::default());
    for bytes in S::broken_replies() {
        let (endpoint, serving) = hostile_server::<S>(bytes).await;
        let connection = transport.connect(&endpoint).await.unwrap();
        let error = in_time("end of the call", call(&*connection)).await.unwrap_err();
        // The connection may end before the request is sent.
        let known = matches!(error, TransportError::Lost { .. } | TransportError::Unreachable { .. });
        assert!(known, "{error}");
        in_time("end of the server", serving).await.unwrap();
        // After a connection without any reply, the client backs off.
        let error = in_time("end of the call", call(&*connection)).await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    }
}

async fn truncated_payload_is_silence<S: RawProtocol>() {
    let (endpoint, serving) = hostile_server::<S>(S::begun_reply()).await;
    let transport = S::transport(TransportSettings::default());
    let connection = transport.connect(&endpoint).await.unwrap();
    let id = connection.next_id();
    let silence = Deadline::Silence(Duration::from_millis(200));
    let call = connection.call(id, request(id.0), silence);
    let error = in_time("deadline", call).await.unwrap_err();
    assert!(matches!(error, TransportError::Deadline { .. }), "{error}");
    drop(connection);
    in_time("end of the server", serving).await.unwrap();
}

async fn silent_or_wrong_server_is_unreachable<S: RawProtocol>() {
    let transport = S::transport(short_handshake());
    for bytes in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = S::endpoint(&listener.local_addr().unwrap().to_string());
        let accepting = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            closed(&mut stream).await;
        });
        let connection = transport.connect(&endpoint).await.unwrap();
        let error = in_time("end of the call", call(&*connection)).await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
        in_time("end of the connection", accepting).await.unwrap();
    }
}
