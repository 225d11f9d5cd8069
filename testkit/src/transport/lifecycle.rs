//! Cases for the lifecycle: restart, missing listener, shutdown, close.

use std::time::Duration;

use bytes::Bytes;

use enjambre_core::{Deadline, Endpoint, TransportError};

use super::probe::{
    TIMEOUT, accept, answer, call, call_until_answered, echo, in_time, join, payload, read, spawn_call,
};
use super::subject::Subject;

/// Calls fail as unsent while no listener is bound, and succeed again after a restart of the listener.
pub async fn restarted_listener_is_reconnected(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let endpoint = listener.local_endpoint().clone();
    for round in 0..2 {
        let listener = if round == 0 {
            listener.clone()
        } else {
            in_time("bind", subject.transport.bind(&endpoint)).await.expect("the port is free again")
        };
        let served = echo(&listener);
        assert_eq!(call_until_answered(&*connection, round).await, round);
        listener.shutdown(Duration::ZERO).await;
        in_time("end of the service", served).await.expect("no panic");
        let error = in_time("failure", call(&*connection, 9, Deadline::Total(TIMEOUT))).await;
        // The first call may detect the lost connection.
        let error = match error {
            Err(TransportError::Lost { .. }) => {
                in_time("failure", call(&*connection, 9, Deadline::Total(TIMEOUT))).await
            }
            other => other,
        };
        assert!(matches!(error, Err(TransportError::Unreachable { .. })), "{error:?}");
    }
}

/// A call without a listener fails as unsent, long before the deadline.
pub async fn missing_listener_is_unreachable_promptly(subject: Subject) {
    let listener = subject.listen().await;
    let endpoint = listener.local_endpoint().clone();
    listener.shutdown(Duration::ZERO).await;
    drop(listener);
    let connection = subject.connect(&endpoint).await;
    for _ in 0..3 {
        let call = in_time("failure", call(&*connection, 0, Deadline::Total(10 * TIMEOUT))).await;
        let error = call.expect_err("there is no listener");
        assert!(matches!(error, TransportError::Unreachable { .. }) && error.is_unsent(), "{error}");
    }
}

/// After a shutdown, `accept` returns `Closed`, and calls without a reply are lost immediately.
pub async fn shutdown_ends_accept_and_outstanding_calls(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let calls: Vec<_> = (0..3).map(|number| spawn_call(&connection, number)).collect();
    let held = accept(&*listener).await;
    let others = [accept(&*listener).await, accept(&*listener).await];
    let accepting = tokio::spawn({
        let listener = listener.clone();
        async move { while listener.accept().await.is_ok() {} }
    });
    in_time("shutdown", listener.shutdown(TIMEOUT)).await;
    in_time("end of accept", accepting).await.expect("no panic");
    assert!(matches!(in_time("accept", listener.accept()).await, Err(TransportError::Closed)));
    for call in calls {
        let result = join(call).await;
        assert!(matches!(result, Err(TransportError::Lost { .. })), "{result:?}");
    }
    for held in others.into_iter().chain([held]) {
        assert!(matches!(answer(held, Bytes::new()).await, Err(TransportError::Closed)));
    }
    // A second shutdown has no effect.
    in_time("shutdown", listener.shutdown(Duration::ZERO)).await;
}

/// Dropping the listener has the effect of a shutdown without grace.
pub async fn dropped_listener_is_shut_down(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let pending = spawn_call(&connection, 0);
    let held = accept(&*listener).await;
    drop(listener);
    assert!(matches!(join(pending).await, Err(TransportError::Lost { .. })));
    drop(held);
}

/// A queued reply arrives even if the listener is shut down immediately afterwards.
pub async fn reply_queued_before_shutdown_arrives(subject: Subject) {
    for round in 0..5 {
        let (listener, connection) = subject.pair().await;
        let pending = spawn_call(&connection, round);
        let _unanswered = spawn_call(&connection, 100);
        let (one, two) = (accept(&*listener).await, accept(&*listener).await);
        let wanted = if read(&one.request).0 == round { one } else { two };
        answer(wanted, payload(round, subject.limits.payload)).await.expect("the remote is connected");
        in_time("shutdown", listener.shutdown(TIMEOUT)).await;
        let (number, got) = join(pending).await.expect("the queued reply");
        assert!(number == round && got == payload(round, subject.limits.payload));
    }
}

/// Closing a connection fails its outstanding and later calls.
pub async fn closed_connection_fails_its_calls(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let pending = spawn_call(&connection, 0);
    let held = accept(&*listener).await;
    in_time("close", connection.close()).await;
    assert!(matches!(join(pending).await, Err(TransportError::Closed)));
    let later = in_time("failure", call(&*connection, 1, Deadline::Total(TIMEOUT))).await;
    assert!(matches!(later, Err(TransportError::Closed)), "{later:?}");
    drop(held);
}

/// After the end of a connection, `reserve` and `send` return `Closed`.
pub async fn reply_to_a_disconnected_remote_is_refused(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let pending = spawn_call(&connection, 0);
    let mut held = accept(&*listener).await;
    held.reply.reserve(1).await.expect("the remote is connected");
    pending.abort();
    drop(connection);
    let refused = async {
        while held.reply.reserve(0).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time("end of the connection", refused).await;
    assert!(matches!(answer(held, Bytes::new()).await, Err(TransportError::Closed)));
    // Other connections are unaffected.
    let other = subject.connect(listener.local_endpoint()).await;
    let pending = spawn_call(&other, 1);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is connected");
    assert_eq!(join(pending).await.expect("a reply").0, 1);
}

/// The answering side can close a connection. Its calls are lost, and no further reply is sent. Other connections are
/// unaffected. The next call of the requester arrives on a new connection.
pub async fn handle_closes_its_connection(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let other = subject.connect(listener.local_endpoint()).await;
    let others = spawn_call(&other, 100);
    let others_request = accept(&*listener).await;
    let first = spawn_call(&connection, 0);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is connected");
    join(first).await.expect("a reply");

    let calls = [spawn_call(&connection, 1), spawn_call(&connection, 2)];
    let held = [accept(&*listener).await, accept(&*listener).await];
    let ended = held[0].peer.clone();
    assert!(!ended.handle.is_closed());
    ended.handle.close();
    for call in calls {
        let result = join(call).await;
        assert!(matches!(result, Err(TransportError::Lost { .. })), "{result:?}");
    }
    for mut held in held {
        assert!(held.peer.handle.is_closed());
        let refused = async {
            while held.reply.reserve(0).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time("end of the connection", refused).await;
        assert!(matches!(answer(held, Bytes::new()).await, Err(TransportError::Closed)));
    }
    // A second close has no effect.
    ended.handle.close();
    assert!(!others_request.peer.handle.is_closed());
    answer(others_request, Bytes::new()).await.expect("the remote is connected");
    assert_eq!(join(others).await.expect("a reply").0, 100);
    let again = spawn_call(&connection, 3);
    let request = accept(&*listener).await;
    assert_ne!(request.peer.connection, ended.connection);
    answer(request, Bytes::new()).await.expect("the remote is connected");
    assert_eq!(join(again).await.expect("a reply").0, 3);
}

/// The budget of replies that wait on a closed connection is released.
pub async fn closed_connection_releases_its_reply_budget(subject: Subject) {
    let (listener, greedy) = subject.pair().await;
    let size = subject.limits.payload;
    let calls: Vec<_> =
        (0..subject.limits.in_flight as u64).map(|number| spawn_call(&greedy, number)).collect();
    let mut waiting = Vec::new();
    let mut ended = None;
    for _ in &calls {
        let mut incoming = accept(&*listener).await;
        let handle = incoming.peer.handle.clone();
        ended.get_or_insert_with(|| handle.clone());
        waiting.push(tokio::spawn(async move {
            // Some reservations succeed, the others wait.
            let reserved = incoming.reply.reserve(size).await;
            handle.closed().await;
            drop((reserved, incoming));
        }));
    }
    ended.expect("a request").close();
    for waiting in waiting {
        in_time("end of a reservation", waiting).await.expect("no panic");
    }
    for call in calls {
        assert!(matches!(join(call).await, Err(TransportError::Lost { .. })));
    }
    let modest = subject.connect(listener.local_endpoint()).await;
    for number in 0..8 {
        let pending = spawn_call(&modest, number);
        answer(accept(&*listener).await, payload(number, size)).await.expect("the remote is connected");
        assert!(join(pending).await.expect("a reply").1 == payload(number, size));
    }
}

/// The handle reports the end of a connection that the requester closes, or whose listener is shut down.
pub async fn handle_reports_the_end_of_its_connection(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let pending = spawn_call(&connection, 0);
    let held = accept(&*listener).await;
    assert!(!held.peer.handle.is_closed());
    in_time("close", connection.close()).await;
    in_time("end of the connection", held.peer.handle.closed()).await;
    assert!(matches!(join(pending).await, Err(TransportError::Closed)));
    let other = subject.connect(listener.local_endpoint()).await;
    let pending = spawn_call(&other, 1);
    let held = accept(&*listener).await;
    in_time("shutdown", listener.shutdown(Duration::ZERO)).await;
    in_time("end of the listener", held.peer.handle.closed()).await;
    assert!(matches!(join(pending).await, Err(TransportError::Lost { .. })));
}

/// Endpoints with another scheme, and connections to port 0, are refused.
pub async fn invalid_endpoints_are_refused(subject: Subject) {
    let other: Endpoint = "surelynot://127.0.0.1:1".parse().expect("a valid endpoint");
    let transport = &subject.transport;
    assert!(matches!(transport.connect(&other).await, Err(TransportError::InvalidEndpoint { .. })));
    assert!(matches!(transport.bind(&other).await, Err(TransportError::InvalidEndpoint { .. })));
    let no_port = subject.endpoint.with_port(0);
    assert!(matches!(transport.connect(&no_port).await, Err(TransportError::InvalidEndpoint { .. })));
    assert_eq!(transport.scheme(), subject.endpoint.scheme());
}

/// A second listener at an endpoint is refused while the first one is open.
pub async fn endpoint_in_use_is_refused(subject: Subject) {
    let listener = subject.listen().await;
    let second = subject.transport.bind(listener.local_endpoint()).await;
    assert!(matches!(second, Err(TransportError::Bind { .. })), "{second:?}");
    let free = subject.listen().await;
    assert_ne!(free.local_endpoint(), listener.local_endpoint());
}
