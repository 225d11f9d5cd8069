//! Cases about beginning and end: restart, nobody there, shutdown, close.

use std::time::Duration;

use bytes::Bytes;

use super::*;

/// A call to where nobody listens any more fails as unsent; once somebody does, calls succeed again.
pub async fn a_restarted_listener_is_found_again(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let endpoint = listener.local_endpoint().clone();
    for round in 0..2 {
        let listener = if round == 0 {
            listener.clone()
        } else {
            soon("binding", subject.transport.bind(&endpoint)).await.expect("the port is free again")
        };
        let served = echo(&listener);
        assert_eq!(ask_until_answered(&*connection, round).await, round);
        listener.shutdown(Duration::ZERO).await;
        soon("the end of the service", served).await.expect("no panic");
        let error = soon("a failure", ask(&*connection, 9, Deadline::Total(PATIENCE))).await;
        // The first call may find out that the connection is lost.
        let error = match error {
            Err(TransportError::Lost { .. }) => {
                soon("a failure", ask(&*connection, 9, Deadline::Total(PATIENCE))).await
            }
            other => other,
        };
        assert!(matches!(error, Err(TransportError::Unreachable { .. })), "{error:?}");
    }
}

/// Dialling where nobody listens fails long before the deadline, and tells that nothing was sent.
pub async fn nobody_listening_is_known_promptly(subject: Subject) {
    let listener = subject.listen().await;
    let endpoint = listener.local_endpoint().clone();
    listener.shutdown(Duration::ZERO).await;
    drop(listener);
    let connection = subject.connect(&endpoint).await;
    for _ in 0..3 {
        let call = soon("a failure", ask(&*connection, 0, Deadline::Total(10 * PATIENCE))).await;
        let error = call.expect_err("nobody listens");
        assert!(matches!(error, TransportError::Unreachable { .. }) && error.is_unsent(), "{error}");
    }
}

/// After a shutdown `accept` returns `Closed`, and calls without a reply are lost at once.
pub async fn shutdown_ends_accept_and_the_calls_under_way(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let asked: Vec<_> = (0..3).map(|number| asking(&connection, number)).collect();
    let held = accept(&*listener).await;
    let others = [accept(&*listener).await, accept(&*listener).await];
    let accepting = tokio::spawn({
        let listener = listener.clone();
        async move { while listener.accept().await.is_ok() {} }
    });
    soon("shutdown", listener.shutdown(PATIENCE)).await;
    soon("the end of accepting", accepting).await.expect("no panic");
    assert!(matches!(soon("accept", listener.accept()).await, Err(TransportError::Closed)));
    for asked in asked {
        let result = finished(asked).await;
        assert!(matches!(result, Err(TransportError::Lost { .. })), "{result:?}");
    }
    for held in others.into_iter().chain([held]) {
        assert!(matches!(answer(held, Bytes::new()).await, Err(TransportError::Closed)));
    }
    // Once more does nothing.
    soon("shutdown", listener.shutdown(Duration::ZERO)).await;
}

/// Dropping the listener does what a shutdown without grace does.
pub async fn a_dropped_listener_is_shut_down(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let asked = asking(&connection, 0);
    let held = accept(&*listener).await;
    drop(listener);
    assert!(matches!(finished(asked).await, Err(TransportError::Lost { .. })));
    drop(held);
}

/// A reply that was given arrives, however soon the listener is shut down afterwards.
pub async fn a_reply_given_before_shutdown_arrives(subject: Subject) {
    for round in 0..5 {
        let (listener, connection) = subject.pair().await;
        let asked = asking(&connection, round);
        let _unanswered = asking(&connection, 100);
        let (one, two) = (accept(&*listener).await, accept(&*listener).await);
        let wanted = if read(&one.header).1 == round { one } else { two };
        answer(wanted, payload(round, subject.limits.payload)).await.expect("the remote is there");
        soon("shutdown", listener.shutdown(PATIENCE)).await;
        let (number, got) = finished(asked).await.expect("the reply that was given");
        assert!(number == round && got == payload(round, subject.limits.payload));
    }
}

/// Closing or dropping a connection ends its calls, now and later.
pub async fn a_closed_connection_fails_its_calls(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let asked = asking(&connection, 0);
    let held = accept(&*listener).await;
    soon("closing", connection.close()).await;
    assert!(matches!(finished(asked).await, Err(TransportError::Closed)));
    let later = soon("a failure", ask(&*connection, 1, Deadline::Total(PATIENCE))).await;
    assert!(matches!(later, Err(TransportError::Closed)), "{later:?}");
    drop(held);
}

/// Who is gone gets no reply: reserving and sending return `Closed` as soon as it is known.
pub async fn a_reply_to_a_remote_that_is_gone_is_refused(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let asked = asking(&connection, 0);
    let mut held = accept(&*listener).await;
    held.reply.reserve(1).await.expect("the remote is there");
    asked.abort();
    drop(connection);
    let refused = async {
        while held.reply.reserve(0).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("knowing that the remote is gone", refused).await;
    assert!(matches!(answer(held, Bytes::new()).await, Err(TransportError::Closed)));
    // The listener goes on.
    let other = subject.connect(listener.local_endpoint()).await;
    let asked = asking(&other, 1);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is there");
    assert_eq!(finished(asked).await.expect("a reply").0, 1);
}

/// Who answers can end a connection: its calls are lost, no reply leaves over it any more, and nobody else notices. The next
/// call of the same asker comes over another one.
pub async fn a_connection_can_be_ended_by_who_answers(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let other = subject.connect(listener.local_endpoint()).await;
    let others = asking(&other, 100);
    let others_request = accept(&*listener).await;
    let first = asking(&connection, 0);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is there");
    finished(first).await.expect("a reply");

    let asked = [asking(&connection, 1), asking(&connection, 2)];
    let held = [accept(&*listener).await, accept(&*listener).await];
    let ended = held[0].peer.clone();
    assert!(!ended.handle.is_closed());
    ended.handle.close();
    for asked in asked {
        let result = finished(asked).await;
        assert!(matches!(result, Err(TransportError::Lost { .. })), "{result:?}");
    }
    for mut held in held {
        assert!(held.peer.handle.is_closed());
        let refused = async {
            while held.reply.reserve(0).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("knowing that the connection has ended", refused).await;
        assert!(matches!(answer(held, Bytes::new()).await, Err(TransportError::Closed)));
    }
    // Once more does nothing.
    ended.handle.close();
    assert!(!others_request.peer.handle.is_closed());
    answer(others_request, Bytes::new()).await.expect("the remote is there");
    assert_eq!(finished(others).await.expect("a reply").0, 100);
    let again = asking(&connection, 3);
    let request = accept(&*listener).await;
    assert_ne!(request.peer.connection, ended.connection);
    answer(request, Bytes::new()).await.expect("the remote is there");
    assert_eq!(finished(again).await.expect("a reply").0, 3);
}

/// However much waits to be sent over a connection that is ended by who answers, its room is free for others.
pub async fn what_waits_on_a_connection_that_is_ended_makes_room(subject: Subject) {
    let (listener, greedy) = subject.pair().await;
    let size = subject.limits.payload;
    let asked: Vec<_> = (0..subject.limits.in_flight as u64).map(|number| asking(&greedy, number)).collect();
    let mut waiting = Vec::new();
    let mut ended = None;
    for _ in &asked {
        let mut incoming = accept(&*listener).await;
        let handle = incoming.peer.handle.clone();
        ended.get_or_insert_with(|| handle.clone());
        waiting.push(tokio::spawn(async move {
            // Of some there is room for a payload, and the others wait for it.
            let room = incoming.reply.reserve(size).await;
            handle.closed().await;
            drop((room, incoming));
        }));
    }
    ended.expect("a request").close();
    for waiting in waiting {
        soon("the end of waiting for room", waiting).await.expect("no panic");
    }
    for asked in asked {
        assert!(matches!(finished(asked).await, Err(TransportError::Lost { .. })));
    }
    let modest = subject.connect(listener.local_endpoint()).await;
    for number in 0..8 {
        let asked = asking(&modest, number);
        answer(accept(&*listener).await, payload(number, size)).await.expect("the remote is there");
        assert!(finished(asked).await.expect("a reply").1 == payload(number, size));
    }
}

/// Of a connection that its asker closes, who answers knows that it has ended.
pub async fn who_answers_knows_when_a_connection_has_ended(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let asked = asking(&connection, 0);
    let held = accept(&*listener).await;
    assert!(!held.peer.handle.is_closed());
    soon("closing", connection.close()).await;
    soon("knowing that the remote is gone", held.peer.handle.closed()).await;
    assert!(matches!(finished(asked).await, Err(TransportError::Closed)));
    let other = subject.connect(listener.local_endpoint()).await;
    let asked = asking(&other, 1);
    let held = accept(&*listener).await;
    soon("shutdown", listener.shutdown(Duration::ZERO)).await;
    soon("knowing that the listener is gone", held.peer.handle.closed()).await;
    assert!(matches!(finished(asked).await, Err(TransportError::Lost { .. })));
}

/// An endpoint of another scheme, and port 0 for dialling, are refused by name.
pub async fn endpoints_that_cannot_be_used_are_refused(subject: Subject) {
    let other: Endpoint = "surelynot://127.0.0.1:1".parse().expect("an endpoint");
    let transport = &subject.transport;
    assert!(matches!(transport.connect(&other).await, Err(TransportError::InvalidEndpoint { .. })));
    assert!(matches!(transport.bind(&other).await, Err(TransportError::InvalidEndpoint { .. })));
    let no_port = subject.endpoint.with_port(0);
    assert!(matches!(transport.connect(&no_port).await, Err(TransportError::InvalidEndpoint { .. })));
    assert_eq!(transport.scheme(), subject.endpoint.scheme());
}

/// A second listener at an endpoint is refused while the first is open.
pub async fn an_endpoint_is_listened_at_once(subject: Subject) {
    let listener = subject.listen().await;
    let second = subject.transport.bind(listener.local_endpoint()).await;
    assert!(matches!(second, Err(TransportError::Bind { .. })), "{second:?}");
    let free = subject.listen().await;
    assert_ne!(free.local_endpoint(), listener.local_endpoint());
}
