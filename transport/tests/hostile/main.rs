//! What a remote must not get away with: plain sockets against a listener that keeps serving another client.
//!
//! Each attack is written once and runs over both transports, plain and encrypted; `zmq` has those that only ZMTP makes possible. A case
//! ends with an event (the connection is closed, a reply comes), never with a pause, and with the proof that the
//! bystander got all its replies meanwhile.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod scene;
mod spoken;
mod tcp;
mod tls;
mod zmq;
mod zmtp;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::envelope::{self, RequestId};
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Deadline, Message};
use enjambre_transport::settings::TransportSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use scene::{
    LARGE, PATIENCE, Scene, call, closed, greeted, greeted_from, header, listen, short_handshake, soon, until,
};
use spoken::{Side, Spoken, requests};

/// Runs each attack over both transports, plain and encrypted.
macro_rules! attacks {
    ($($attack:ident)*) => {
        attacks! { @over over_tcp, crate::tcp::Tcp: $($attack)* }
        attacks! { @over over_zmq, crate::zmtp::Zmtp: $($attack)* }
        attacks! { @over over_tcps, crate::tls::Tls<crate::tcp::Tcp>: $($attack)* }
        attacks! { @over over_zmqs, crate::tls::Tls<crate::zmtp::Zmtp>: $($attack)* }
    };
    (@over $module:ident, $spoken:ty: $($attack:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $attack() {
                    super::$attack::<$spoken>().await;
                }
            )*
        }
    };
}

attacks! {
    what_breaks_the_framing_or_a_limit_ends_the_connection
    who_does_not_finish_the_greeting_is_cut_off
    who_speaks_something_else_is_cut_off_at_once
    requests_right_behind_the_greeting_are_answered
    requests_that_come_byte_by_byte_are_answered
    what_is_malformed_is_answered_and_the_connection_lives
    asks_for_much_and_never_reads
    asks_for_little_and_never_reads
    takes_a_byte_now_and_then
    sends_a_request_a_byte_now_and_then
    many_who_never_read_leave_room_for_others
    many_who_never_read_leave_room_for_who_comes_from_elsewhere
    a_full_connection_that_is_closed_is_noticed_at_once
    more_connections_than_allowed
    an_idle_connection_is_closed_and_one_in_use_is_not
    a_client_leaves_before_it_is_closed_and_dials_again_without_a_lost_call
    a_client_survives_a_hostile_server
    a_payload_that_stops_halfway_is_silence
    a_server_that_says_nothing_or_something_else_is_unreachable
}

fn stalled_after(millis: u64) -> TransportSettings {
    TransportSettings { stalled: Duration::from_millis(millis), ..TransportSettings::default() }
}

async fn what_breaks_the_framing_or_a_limit_ends_the_connection<S: Spoken>() {
    let scene = Scene::new::<S>(TransportSettings::default(), 0).await;
    for broken in S::broken_requests() {
        let mut stream = greeted::<S>(&scene.address).await;
        stream.write_all(&broken).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

async fn who_does_not_finish_the_greeting_is_cut_off<S: Spoken>() {
    let scene = Scene::new::<S>(short_handshake(), 0).await;
    let greeting = S::greeting(Side::Client);
    let mut streams = Vec::new();
    for said in S::half_greetings() {
        let mut stream = scene.connect::<S>().await;
        stream.write_all(&greeting[..said]).await.unwrap();
        streams.push(stream);
    }
    for mut stream in streams {
        closed(&mut stream).await;
    }
    scene.end().await;
}

async fn who_speaks_something_else_is_cut_off_at_once<S: Spoken>() {
    // They are told apart at once, so no limit on the time can be what ends them.
    let settings = TransportSettings { handshake: 2 * PATIENCE, ..TransportSettings::default() };
    let scene = Scene::new::<S>(settings, 0).await;
    for said in S::false_greetings() {
        let mut stream = scene.connect::<S>().await;
        stream.write_all(&said).await.unwrap();
        closed(&mut stream).await;
    }
    scene.end().await;
}

async fn requests_right_behind_the_greeting_are_answered<S: Spoken>() {
    let scene = Scene::new::<S>(TransportSettings::default(), 100).await;
    let mut stream = scene.connect::<S>().await;
    stream.write_all(&[S::greeting(Side::Client), requests::<S>(1..3)].concat()).await.unwrap();
    soon("a greeting", S::take_greeting(&mut stream)).await.unwrap();
    let mut answered = [reply::<S>(&mut stream).await.0, reply::<S>(&mut stream).await.0];
    answered.sort();
    assert_eq!(answered, [header(Some(1)), header(Some(2))]);
    scene.end().await;
}

async fn requests_that_come_byte_by_byte_are_answered<S: Spoken>() {
    let scene = Scene::new::<S>(TransportSettings::default(), 10).await;
    let mut stream = greeted::<S>(&scene.address).await;
    for byte in requests::<S>(1..3) {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        assert_eq!(reply::<S>(&mut stream).await.1, [7; 10][..]);
    }
    scene.end().await;
}

async fn reply<S: Spoken>(stream: &mut TcpStream) -> (Bytes, Bytes) {
    soon("a reply", S::reply(stream)).await
}

async fn what_is_malformed_is_answered_and_the_connection_lives<S: Spoken>() {
    let scene = Scene::new::<S>(TransportSettings::default(), 100).await;
    let mut stream = greeted::<S>(&scene.address).await;
    for (request, id) in S::malformed_requests() {
        stream.write_all(&request).await.unwrap();
        let (answer, payload) = reply::<S>(&mut stream).await;
        assert_eq!(envelope::read(&answer).unwrap().id, id.map(RequestId));
        assert!(answer.windows(9).any(|text| text == b"malformed") && payload.is_empty());
        stream.write_all(&S::request(5)).await.unwrap();
        assert_eq!(reply::<S>(&mut stream).await, (header(Some(5)), Bytes::from(vec![7; 100])));
    }
    scene.end().await;
}

async fn asks_for_much_and_never_reads<S: Spoken>() {
    let settings = stalled_after(500);
    let limit = settings.queued_per_connection;
    let mut scene = Scene::new::<S>(settings, LARGE).await;
    let (mut from, mut to) = greeted::<S>(&scene.address).await.into_split();
    let asking = tokio::spawn(async move {
        // Fails when it is cut off.
        let _ = to.write_all(&requests::<S>(0..3000)).await;
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

async fn asks_for_little_and_never_reads<S: Spoken>() {
    let scene = Scene::new::<S>(stalled_after(500), 0).await;
    let mut stream = greeted::<S>(&scene.address).await;
    let requests = requests::<S>(0..1000);
    let flood = async { while stream.write_all(&requests).await.is_ok() {} };
    soon("cutting off who does not read", flood).await;
    scene.end().await;
}

async fn takes_a_byte_now_and_then<S: Spoken>() {
    let scene = Scene::new::<S>(stalled_after(500), 4 << 20).await;
    let mut stream = greeted::<S>(&scene.address).await;
    stream.write_all(&requests::<S>(0..8)).await.unwrap();
    let mut some = [0; 16];
    let sipping = async {
        while stream.read(&mut some).await.is_ok_and(|read| read > 0) && scene.transport.connections() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("cutting off who takes too little", sipping).await;
    scene.end().await;
}

async fn sends_a_request_a_byte_now_and_then<S: Spoken>() {
    let scene = Scene::new::<S>(stalled_after(500), 0).await;
    let mut stream = greeted::<S>(&scene.address).await;
    stream.write_all(&S::begun_requests()[0]).await.unwrap();
    // It would end after seconds at the earliest.
    let dripping = async {
        while scene.transport.connections() > 1 && stream.write_all(b"\0").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("cutting off who does not come to an end", dripping).await;
    closed(&mut stream).await;
    scene.end().await;
}

/// Connections that ask for more than there is room for and read nothing.
async fn greedy<S: Spoken>(scene: &Scene, from: Ipv4Addr) -> Vec<TcpStream> {
    let mut greedy = Vec::new();
    for _ in 0..10 {
        let mut stream = greeted_from::<S>(from, &scene.address).await;
        stream.write_all(&requests::<S>(0..64)).await.unwrap();
        greedy.push(stream);
    }
    greedy
}

async fn many_who_never_read_leave_room_for_others<S: Spoken>() {
    let settings = stalled_after(1000);
    let limit = settings.queued_in_all;
    let scene = Scene::new::<S>(settings, 4 << 20).await;
    let greedy = greedy::<S>(&scene, Ipv4Addr::LOCALHOST).await;
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

async fn many_who_never_read_leave_room_for_who_comes_from_elsewhere<S: Spoken>() {
    // Other systems have one loopback address.
    if !cfg!(target_os = "linux") {
        return;
    }
    // Nobody is cut off meanwhile.
    let settings = TransportSettings { stalled: 10 * PATIENCE, ..TransportSettings::default() };
    let (limit, half) = (settings.queued_in_all, settings.queued_in_all / 2);
    let scene = Scene::new::<S>(settings, 4 << 20).await;
    let greedy = greedy::<S>(&scene, Ipv4Addr::new(127, 0, 0, 2)).await;
    until("taking what they can", || scene.transport.queued_reply_bytes() > half / 2).await;
    let modest = scene.transport.connect(scene.listener.local_endpoint()).await.unwrap();
    for _ in 0..5 {
        assert_eq!(soon("a reply", call(&*modest)).await.unwrap().payload.len(), 4 << 20);
        assert!(scene.transport.queued_reply_bytes() <= limit);
    }
    drop(greedy);
    drop(modest);
    scene.end().await;
}

/// Nothing more is read from a remote that has asked for more than may be in flight.
async fn a_full_connection_that_is_closed_is_noticed_at_once<S: Spoken>() {
    let transport = S::transport(TransportSettings::default());
    let (listener, address) = listen(&*transport).await;
    let mut stream = greeted::<S>(&address).await;
    stream.write_all(&requests::<S>(0..2000)).await.unwrap();
    let mut held = Vec::new();
    while held.len() < TransportSettings::default().in_flight {
        held.push(soon("a request", listener.accept()).await.unwrap());
    }
    drop(stream);
    until("noticing that the remote is gone", || transport.connections() == 0).await;
    for mut held in held {
        assert!(matches!(held.reply.reserve(0).await, Err(TransportError::Closed)));
    }
}

async fn more_connections_than_allowed<S: Spoken>() {
    let from_here =
        TransportSettings { connections_per_address: 5, connections: 100, ..TransportSettings::default() };
    let in_all = TransportSettings { connections: 5, ..TransportSettings::default() };
    for settings in [from_here, in_all] {
        let scene = Scene::new::<S>(settings, 0).await;
        // One is the bystander's.
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(greeted::<S>(&scene.address).await);
        }
        for _ in 0..10 {
            closed(&mut scene.connect::<S>().await).await;
        }
        assert_eq!(scene.transport.connections(), 5);
        // Who goes makes room.
        drop(held.pop());
        until("a place that is free again", || scene.transport.connections() < 5).await;
        held.push(greeted::<S>(&scene.address).await);
        drop(held);
        scene.end().await;
    }
}

async fn an_idle_connection_is_closed_and_one_in_use_is_not<S: Spoken>() {
    let settings = TransportSettings { idle: Duration::from_millis(400), ..TransportSettings::default() };
    let transport = S::transport(settings);
    let (listener, address) = listen(&*transport).await;
    let mut used = greeted::<S>(&address).await;
    used.write_all(&S::request(1)).await.unwrap();
    let held = soon("a request", listener.accept()).await.unwrap();
    // Half a request keeps a connection no longer than none.
    let mut streams = Vec::new();
    for begun in [vec![vec![]], S::begun_requests()].concat() {
        let mut stream = greeted::<S>(&address).await;
        stream.write_all(&begun).await.unwrap();
        streams.push(stream);
    }
    for mut stream in streams {
        closed(&mut stream).await;
    }
    // Nothing went over it for longer than over the others.
    let answer = Message { header: header(Some(1)), payload: Bytes::new() };
    held.reply.send(answer).await.unwrap();
    assert_eq!(reply::<S>(&mut used).await.0, header(Some(1)));
}

async fn a_client_leaves_before_it_is_closed_and_dials_again_without_a_lost_call<S: Spoken>() {
    let mut scene = Scene::new::<S>(TransportSettings::default(), 0).await;
    // The other side would not close it for long.
    let settings = TransportSettings { idle: Duration::from_millis(50), ..TransportSettings::default() };
    let client = S::transport(settings);
    let connection = client.connect(scene.listener.local_endpoint()).await.unwrap();
    let (bystander, _) = soon("a call of the bystander", scene.sent.recv()).await.unwrap();
    let mut used = HashSet::new();
    for _ in 0..4 {
        soon("a reply", call(&*connection)).await.expect("no call is lost");
        until("the client leaves", || scene.transport.connections() == 1).await;
        while let Ok((connection, _)) = scene.sent.try_recv() {
            used.insert(connection);
        }
    }
    used.remove(&bystander);
    assert_eq!(used.len(), 4, "a connection each time");
    scene.end().await;
}

/// A server that sends these bytes after the greeting and then waits to be left.
async fn hostile_server<S: Spoken>(says: Vec<u8>) -> (Endpoint, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = S::endpoint(&listener.local_addr().unwrap().to_string());
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = S::accepted(stream).await;
        stream.write_all(&S::greeting(Side::Server)).await.unwrap();
        S::take_greeting(&mut stream).await.unwrap();
        // Fails when the client has had enough.
        let _ = stream.write_all(&says).await;
        closed(&mut stream).await;
    });
    (endpoint, serving)
}

async fn a_client_survives_a_hostile_server<S: Spoken>() {
    let transport = S::transport(TransportSettings::default());
    for says in S::broken_replies() {
        let (endpoint, serving) = hostile_server::<S>(says).await;
        let connection = transport.connect(&endpoint).await.unwrap();
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

async fn a_payload_that_stops_halfway_is_silence<S: Spoken>() {
    let (endpoint, serving) = hostile_server::<S>(S::begun_reply()).await;
    let transport = S::transport(TransportSettings::default());
    let connection = transport.connect(&endpoint).await.unwrap();
    let id = connection.next_id();
    let silence = Deadline::Silence(Duration::from_millis(200));
    let call = connection.call(id, header(Some(id.0)), silence);
    let error = soon("the deadline", call).await.unwrap_err();
    assert!(matches!(error, TransportError::Deadline { .. }), "{error}");
    drop(connection);
    soon("the end of the server", serving).await.unwrap();
}

async fn a_server_that_says_nothing_or_something_else_is_unreachable<S: Spoken>() {
    let transport = S::transport(short_handshake());
    for says in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = S::endpoint(&listener.local_addr().unwrap().to_string());
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
