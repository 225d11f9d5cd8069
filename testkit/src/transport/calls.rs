//! Cases for calls: matching, order, size, deadlines, cancellation.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use enjambre_core::{Deadline, Message, TransportError};

use super::probe::{
    TIMEOUT, accept, answer, call, echo, in_time, join, payload, read, reply, request, spawn_call,
};
use super::subject::Subject;

/// More concurrent calls than the limit of outstanding requests, from many tasks, get their own replies.
pub async fn concurrent_calls_get_their_own_replies(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let served = echo(&listener);
    let calls: Vec<_> = (0..1000).map(|number| spawn_call(&connection, number)).collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(join(call).await.expect("a reply").0, number as u64);
    }
    listener.shutdown(Duration::ZERO).await;
    in_time("end of the service", served).await.expect("no panic");
}

/// Replies in reverse order reach their calls.
pub async fn replies_in_any_order_match_their_calls(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let calls: Vec<_> = (0..8).map(|number| spawn_call(&connection, number)).collect();
    let mut requests = Vec::new();
    for _ in &calls {
        requests.push(accept(&*listener).await);
    }
    for incoming in requests.into_iter().rev() {
        let (number, _) = read(&incoming.request);
        answer(incoming, payload(number, 1000)).await.expect("the remote is connected");
    }
    for (number, call) in calls.into_iter().enumerate() {
        let number = number as u64;
        assert_eq!(join(call).await.expect("a reply"), (number, payload(number, 1000)));
    }
}

/// The requests of one connection are accepted in the order of sending.
pub async fn requests_arrive_in_order(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let first = spawn_call(&connection, 0);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is connected");
    join(first).await.expect("a reply");
    let pending = tokio::spawn({
        let connection = Arc::clone(&connection);
        // One task polls the calls in order.
        async move { join_all((1..30).map(|n| call(&*connection, n, Deadline::Total(TIMEOUT)))).await }
    });
    for number in 1..30 {
        let incoming = accept(&*listener).await;
        assert_eq!(read(&incoming.request).0, number);
        answer(incoming, Bytes::new()).await.expect("the remote is connected");
    }
    assert!(in_time("replies", pending).await.expect("no panic").iter().all(Result::is_ok));
}

/// Payloads and headers up to the limits arrive unchanged.
pub async fn messages_up_to_the_limits_arrive_unchanged(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let most = subject.limits.payload;
    for size in [0, 1, 255, 256, 65_535, 65_536, 256 * 1024, (1 << 20) + 1, most - 1, most] {
        let pending = spawn_call(&connection, size as u64);
        let mut incoming = accept(&*listener).await;
        in_time("budget", incoming.reply.reserve(size)).await.expect("the remote is connected");
        answer(incoming, payload(3, size)).await.expect("the remote is connected");
        let (_, got) = join(pending).await.expect("a reply");
        assert!(got == payload(3, size), "a payload of {size} bytes arrives as {} bytes", got.len());
    }
    // The largest header, in both directions.
    let id = connection.next_id();
    let limit = subject.limits.header;
    let filler = limit - request(id, 1, 60_000).len() + 60_000;
    let large = request(id, 1, filler);
    assert_eq!(large.len(), limit);
    let call = tokio::spawn({
        let connection = Arc::clone(&connection);
        async move { connection.call(id, large, Deadline::Total(TIMEOUT)).await }
    });
    let incoming = accept(&*listener).await;
    assert_eq!(read(&incoming.request), (1, filler));
    let header = reply(id, 1, limit - reply(id, 1, 60_000).len() + 60_000);
    assert_eq!(header.len(), limit);
    let message = Message { header, payload: payload(1, most) };
    incoming.reply.send(message.clone()).await.expect("the remote is connected");
    assert!(in_time("reply", call).await.expect("no panic").expect("a reply") == message);
}

/// A call without a reply ends at its deadline. Other calls continue.
pub async fn total_deadline_ends_only_its_call(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let other = spawn_call(&connection, 1);
    let other_request = accept(&*listener).await;
    let error = in_time("deadline", call(&*connection, 2, Deadline::Total(Duration::from_millis(50))));
    assert!(matches!(error.await, Err(TransportError::Deadline { .. })));
    let late = accept(&*listener).await;
    assert_eq!(read(&late.request).0, 2);
    answer(late, Bytes::new()).await.expect("the remote is connected");
    answer(other_request, Bytes::new()).await.expect("the remote is connected");
    assert_eq!(join(other).await.expect("a reply").0, 1);
}

/// A silence deadline does not end a call while other replies arrive on the connection.
pub async fn silence_deadline_counts_from_the_last_byte(subject: Subject) {
    const SILENCE: Duration = Duration::from_millis(500);
    let (listener, connection) = subject.pair().await;
    let held = {
        let connection = Arc::clone(&connection);
        tokio::spawn(async move { (call(&*connection, 0, Deadline::Silence(SILENCE)).await, Instant::now()) })
    };
    let held_request = accept(&*listener).await;
    let served = echo(&listener);
    let last = Arc::new(Mutex::new(Instant::now()));
    let others = tokio::spawn({
        let (connection, last) = (Arc::clone(&connection), Arc::clone(&last));
        async move {
            for number in 1..=15 {
                let start = Instant::now();
                call(&*connection, number, Deadline::Total(TIMEOUT)).await.expect("a reply");
                *last.lock() = start;
                tokio::time::sleep(SILENCE / 10).await;
            }
        }
    });
    let (result, ended) = in_time("deadline", held).await.expect("no panic");
    assert!(matches!(result, Err(TransportError::Deadline { .. })));
    // Holds on a slow machine, too: no reply arrived in the time before the deadline.
    let silent = ended.saturating_duration_since(*last.lock());
    assert!(silent >= SILENCE, "the call ended {silent:?} after a reply");
    in_time("end of the other calls", others).await.expect("no panic");
    drop((held_request, served));
}

/// The late reply to an abandoned call is dropped, and the connection remains usable.
pub async fn abandoned_call_leaves_the_connection_open(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    for number in 0..3 {
        let dropped = spawn_call(&connection, number);
        let late = accept(&*listener).await;
        dropped.abort();
        assert!(in_time("end of a call", dropped).await.is_err_and(|error| error.is_cancelled()));
        let other = spawn_call(&connection, 100 + number);
        let request = accept(&*listener).await;
        answer(late, payload(9, 100_000)).await.expect("the remote is connected");
        answer(request, Bytes::new()).await.expect("the remote is connected");
        assert_eq!(join(other).await.expect("a reply"), (100 + number, Bytes::new()));
    }
}

/// Request ids are unique.
pub async fn request_ids_are_unique(subject: Subject) {
    let (_listener, connection) = subject.pair().await;
    let ids: HashSet<_> = (0..1000).map(|_| connection.next_id()).collect();
    assert_eq!(ids.len(), 1000);
}

/// Requests of one connection have the same connection id, those of another connection a different one.
pub async fn connection_ids_identify_connections(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let second = subject.connect(listener.local_endpoint()).await;
    let mut seen = Vec::new();
    for connection in [&connection, &second, &connection, &second] {
        let pending = spawn_call(connection, 0);
        let incoming = accept(&*listener).await;
        seen.push(incoming.peer.connection);
        answer(incoming, Bytes::new()).await.expect("the remote is connected");
        join(pending).await.expect("a reply");
    }
    assert!(seen[0] == seen[2] && seen[1] == seen[3] && seen[0] != seen[1], "{seen:?}");
}
