//! Cases for limits: sizes, numbers and malformed requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use enjambre_core::transport::envelope::{self, PROTOCOL_VERSION};
use enjambre_core::{Deadline, Message, RequestId, TransportError};

use super::probe::{
    LONG, TIMEOUT, accept, answer, call, echo, in_time, join, payload, read, reply, request, spawn_call,
};
use super::subject::Subject;

/// How long a case waits for an event that must not happen. On a slow machine, it may miss a failure.
const A_WHILE: Duration = Duration::from_millis(150);

/// A header above the limit is refused by the requesting side, and the connection remains usable.
pub async fn oversized_header_is_not_sent(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let id = connection.next_id();
    let too_large = request(id, 0, subject.limits.header);
    let error =
        connection.call(id, too_large, Deadline::Total(TIMEOUT)).await.expect_err("it exceeds the limit");
    assert!(matches!(error, TransportError::TooLarge { what: "header", .. }) && error.is_unsent(), "{error}");
    let pending = spawn_call(&connection, 1);
    let incoming = accept(&*listener).await;
    assert_eq!(read(&incoming.request).0, 1, "the oversized request was not sent");
    answer(incoming, Bytes::new()).await.expect("the remote is connected");
    join(pending).await.expect("a reply");
}

/// A reply above a limit is an error for its sender. The requester receives `too_large`, and the connection remains usable.
pub async fn oversized_reply_is_replaced_by_an_error(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    for what in ["payload", "header"] {
        let id = connection.next_id();
        let pending = {
            let connection = Arc::clone(&connection);
            let call = async move { connection.call(id, request(id, 0, 0), LONG).await };
            tokio::spawn(call)
        };
        let incoming = accept(&*listener).await;
        let message = match what {
            "payload" => Message { header: reply(id, 0, 0), payload: payload(0, subject.limits.payload + 1) },
            _ => Message { header: reply(id, 1, subject.limits.header), payload: Bytes::new() },
        };
        let error = in_time("budget for a reply", incoming.reply.send(message))
            .await
            .expect_err("it exceeds the limit");
        assert!(matches!(error, TransportError::TooLarge { what: part, .. } if part == what), "{error}");
        let replacement = in_time("end of a call", pending).await.expect("a call does not panic");
        let replacement = replacement.expect("a reply");
        assert_eq!(envelope::id_of(&replacement.header), Some(id));
        assert!(is_error(&replacement, "too_large") && replacement.payload.is_empty());
    }
    let pending = spawn_call(&connection, 2);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is connected");
    assert_eq!(join(pending).await.expect("a reply").0, 2);
}

/// A call beyond the limit of outstanding requests waits for the reply to another call.
pub async fn calls_beyond_the_limit_wait(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let most = subject.limits.in_flight;
    let calls: Vec<_> = (0..=most as u64).map(|number| spawn_call(&connection, number)).collect();
    let mut requests = Vec::new();
    for _ in 0..most {
        requests.push(accept(&*listener).await);
    }
    let one_more = tokio::time::timeout(A_WHILE, listener.accept()).await;
    assert!(one_more.is_err(), "{one_more:?} beyond {most} outstanding requests");
    // A waiting call ends at its deadline.
    let waiting = call(&*connection, 999, Deadline::Total(Duration::from_millis(20)));
    assert!(matches!(in_time("deadline", waiting).await, Err(TransportError::Deadline { .. })));
    // The limit applies per connection.
    let other = subject.connect(listener.local_endpoint()).await;
    let others = spawn_call(&other, 5000);
    let incoming = accept(&*listener).await;
    assert_eq!(read(&incoming.request).0, 5000);
    answer(incoming, Bytes::new()).await.expect("the remote is connected");
    join(others).await.expect("a reply");
    for incoming in requests {
        answer(incoming, Bytes::new()).await.expect("the remote is connected");
    }
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is connected");
    for call in calls {
        join(call).await.expect("a reply");
    }
}

/// Requests that are dropped without a reply are no longer outstanding.
pub async fn dropped_request_frees_its_slot(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    for number in 0..2 * subject.limits.in_flight as u64 {
        let pending = spawn_call(&connection, number);
        drop(accept(&*listener).await);
        pending.abort();
        let _ = in_time("end of a call", pending).await;
    }
    let pending = spawn_call(&connection, 1);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is connected");
    assert_eq!(join(pending).await.expect("a reply").0, 1);
}

/// A connection that uses its whole reply budget leaves budget for the replies to other connections.
pub async fn unread_replies_leave_budget_for_other_connections(subject: Subject) {
    let (listener, greedy) = subject.pair().await;
    let size = subject.limits.payload;
    let _asked: Vec<_> =
        (0..subject.limits.in_flight as u64).map(|number| spawn_call(&greedy, number)).collect();
    let mut reservations = Vec::new();
    for _ in 0..subject.limits.in_flight {
        let mut incoming = accept(&*listener).await;
        reservations.push(tokio::spawn(async move {
            let reserved = incoming.reply.reserve(size).await;
            // Never releases the reservation.
            std::future::pending::<()>().await;
            drop((reserved, incoming));
        }));
    }
    let served = echo(&listener);
    let modest = subject.connect(listener.local_endpoint()).await;
    for number in 0..20 {
        assert_eq!(join(spawn_call(&modest, number)).await.expect("a reply").0, number);
    }
    served.abort();
    let pending = spawn_call(&modest, 1);
    answer(accept(&*listener).await, payload(1, size)).await.expect("budget for a large reply");
    assert!(join(pending).await.expect("a reply").1 == payload(1, size));
    for reservation in reservations {
        reservation.abort();
    }
}

/// The header is added to the reserved payload. Replies whose payloads use the whole budget of a connection are sent
/// nevertheless.
pub async fn replies_that_fill_the_budget_are_sent(subject: Subject) {
    const SIZE: usize = 256 * 1024;
    let (listener, connection) = subject.pair().await;
    let calls: Vec<_> =
        (0..subject.limits.in_flight as u64).map(|number| spawn_call(&connection, number)).collect();
    let mut reserved = Vec::new();
    let mut waiting = Vec::new();
    for _ in &calls {
        let mut incoming = accept(&*listener).await;
        let fits = waiting.is_empty()
            && tokio::time::timeout(A_WHILE, incoming.reply.reserve(SIZE))
                .await
                .is_ok_and(|reserved| reserved.is_ok());
        if fits { reserved.push(incoming) } else { waiting.push(incoming) }
    }
    for incoming in reserved {
        let (number, _) = read(&incoming.request);
        answer(incoming, payload(number, SIZE)).await.expect("the remote is connected");
    }
    for incoming in waiting {
        answer(incoming, Bytes::new()).await.expect("the remote is connected");
    }
    for call in calls {
        join(call).await.expect("a reply");
    }
}

/// The transport answers a header without an id, so that no service has to. The answer has no id, so it reaches no call.
pub async fn malformed_header_does_not_reach_the_service(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    for garbage in [&b""[..], b"hello", b"\xff\xff", b"\xa0", &[0x9f; 1000]] {
        let garbage = Bytes::copy_from_slice(garbage);
        let malformed = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move { connection.call(connection.next_id(), garbage, LONG).await }
        });
        let valid = spawn_call(&connection, 1);
        let incoming = accept(&*listener).await;
        assert_eq!(read(&incoming.request).0, 1, "only the valid request is accepted");
        answer(incoming, Bytes::new()).await.expect("the remote is connected");
        join(valid).await.expect("a reply: the connection remains open");
        assert!(!malformed.is_finished());
        malformed.abort();
    }
}

/// The transport answers requests of other protocol versions, and requests without a kind, under their id.
pub async fn unsupported_version_is_answered_by_the_transport(subject: Subject) {
    #[derive(Serialize)]
    struct Header {
        v: u32,
        id: RequestId,
        request: Vec<u8>,
    }
    let (_listener, connection) = subject.pair().await;
    for (v, code) in [(PROTOCOL_VERSION + 1, "unsupported"), (PROTOCOL_VERSION, "malformed")] {
        let id = connection.next_id();
        let mut header = Vec::new();
        ciborium::into_writer(&Header { v, id, request: Vec::new() }, &mut header).expect("it is plain data");
        let reply = connection.call(id, header.into(), Deadline::Total(TIMEOUT)).await.expect("a reply");
        assert!(is_error(&reply, code), "{reply:?}");
    }
}

/// Whether a reply contains this error code.
fn is_error(reply: &Message, code: &str) -> bool {
    #[derive(Deserialize)]
    struct Error {
        code: String,
    }
    match envelope::parse_reply(&reply.header) {
        Some(Err(error)) => envelope::decode::<Error>(&error).is_some_and(|error| error.code == code),
        _ => false,
    }
}
