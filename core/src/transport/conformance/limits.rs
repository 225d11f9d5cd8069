//! Cases about limits: what is too large, too many, or not well formed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;

/// How long a case looks for something that must not happen. A slow machine can only make it miss it.
const A_WHILE: Duration = Duration::from_millis(150);

/// A header beyond the limit is refused where it is asked, and the connection goes on.
pub async fn a_header_beyond_the_limit_is_not_sent(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let id = connection.next_id();
    let too_large = header_with(id, 0, subject.limits.header);
    let error = connection.call(id, too_large, Deadline::Total(PATIENCE)).await.expect_err("it is too large");
    assert!(matches!(error, TransportError::TooLarge { what: "header", .. }) && error.is_unsent(), "{error}");
    let asked = asking(&connection, 1);
    let incoming = accept(&*listener).await;
    assert_eq!(read(&incoming.header).1, 1, "the one before was not sent");
    answer(incoming, Bytes::new()).await.expect("the remote is there");
    finished(asked).await.expect("a reply");
}

/// A reply beyond a limit is an error of the one who sends it, and nobody is cut off.
pub async fn a_reply_beyond_the_limits_is_not_sent(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let dropped = asking(&connection, 0);
    let first = accept(&*listener).await;
    let error = answer(first, payload(0, subject.limits.payload + 1)).await.expect_err("it is too large");
    assert!(matches!(error, TransportError::TooLarge { what: "payload", .. }), "{error}");
    let second = asking(&connection, 1);
    let incoming = accept(&*listener).await;
    let (id, _) = read(&incoming.header);
    let reply = Message { header: header_with(id, 1, subject.limits.header), payload: Bytes::new() };
    let error = incoming.reply.send(reply).await.expect_err("it is too large");
    assert!(matches!(error, TransportError::TooLarge { what: "header", .. }), "{error}");
    dropped.abort();
    second.abort();
    let asked = asking(&connection, 2);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is there");
    assert_eq!(finished(asked).await.expect("a reply").0, 2);
}

/// At most so many requests of a connection are in flight; one more comes when one was answered.
pub async fn one_more_call_than_allowed_waits(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let most = subject.limits.in_flight;
    let asked: Vec<_> = (0..=most as u64).map(|number| asking(&connection, number)).collect();
    let mut requests = Vec::new();
    for _ in 0..most {
        requests.push(accept(&*listener).await);
    }
    let one_more = tokio::time::timeout(A_WHILE, listener.accept()).await;
    assert!(one_more.is_err(), "{one_more:?} beyond {most} in flight");
    // A call that waits for its turn has a deadline like any other.
    let waiting = ask(&*connection, 999, Deadline::Total(Duration::from_millis(20)));
    assert!(matches!(soon("the deadline", waiting).await, Err(TransportError::Deadline { .. })));
    // Another connection has a number of its own.
    let other = subject.connect(listener.local_endpoint()).await;
    let others = asking(&other, 5000);
    let incoming = accept(&*listener).await;
    assert_eq!(read(&incoming.header).1, 5000);
    answer(incoming, Bytes::new()).await.expect("the remote is there");
    finished(others).await.expect("a reply");
    for incoming in requests {
        answer(incoming, Bytes::new()).await.expect("the remote is there");
    }
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is there");
    for asked in asked {
        finished(asked).await.expect("a reply");
    }
}

/// Requests that are dropped without a reply are no longer in flight.
pub async fn a_request_that_is_dropped_makes_room(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    for number in 0..2 * subject.limits.in_flight as u64 {
        let asked = asking(&connection, number);
        drop(accept(&*listener).await);
        asked.abort();
        let _ = soon("its end", asked).await;
    }
    let asked = asking(&connection, 1);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is there");
    assert_eq!(finished(asked).await.expect("a reply").0, 1);
}

/// A connection whose replies take up all that it may have leaves room for the replies to others.
pub async fn who_does_not_take_replies_leaves_room_for_others(subject: Subject) {
    let (listener, greedy) = subject.pair().await;
    let size = subject.limits.payload;
    let _asked: Vec<_> = (0..subject.limits.in_flight as u64).map(|number| asking(&greedy, number)).collect();
    let mut taking = Vec::new();
    for _ in 0..subject.limits.in_flight {
        let mut incoming = accept(&*listener).await;
        taking.push(tokio::spawn(async move {
            let taken = incoming.reply.reserve(size).await;
            // Holds what it got for ever.
            std::future::pending::<()>().await;
            drop((taken, incoming));
        }));
    }
    let served = echo(&listener);
    let modest = subject.connect(listener.local_endpoint()).await;
    for number in 0..20 {
        assert_eq!(finished(asking(&modest, number)).await.expect("a reply").0, number);
    }
    served.abort();
    let asked = asking(&modest, 1);
    answer(accept(&*listener).await, payload(1, size)).await.expect("room for a large one, too");
    assert!(finished(asked).await.expect("a reply").1 == payload(1, size));
    for taking in taking {
        taking.abort();
    }
}

/// A header comes on top of a payload that was reserved. Replies whose payloads together take all that a connection may
/// have are sent nevertheless.
pub async fn replies_that_take_up_the_whole_budget_are_sent(subject: Subject) {
    const SIZE: usize = 256 * 1024;
    let (listener, connection) = subject.pair().await;
    let asked: Vec<_> =
        (0..subject.limits.in_flight as u64).map(|number| asking(&connection, number)).collect();
    let mut reserved = Vec::new();
    let mut waiting = Vec::new();
    for _ in &asked {
        let mut incoming = accept(&*listener).await;
        let room = waiting.is_empty()
            && tokio::time::timeout(A_WHILE, incoming.reply.reserve(SIZE))
                .await
                .is_ok_and(|room| room.is_ok());
        if room { reserved.push(incoming) } else { waiting.push(incoming) }
    }
    for incoming in reserved {
        let (_, number) = read(&incoming.header);
        answer(incoming, payload(number, SIZE)).await.expect("the remote is there");
    }
    for incoming in waiting {
        answer(incoming, Bytes::new()).await.expect("the remote is there");
    }
    for asked in asked {
        finished(asked).await.expect("a reply");
    }
}

/// The transport itself answers a header without version and id, so that its sender does not wait for ever and no
/// service has to. The answer has no id, so here it finds no call.
pub async fn a_header_that_is_malformed_never_reaches_the_service(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    for garbage in [&b""[..], b"hello", b"\xff\xff", b"\xa0", &[0x9f; 1000]] {
        let garbage = Bytes::copy_from_slice(garbage);
        let call = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move { connection.call(connection.next_id(), garbage, Deadline::Total(2 * PATIENCE)).await }
        });
        let asked = asking(&connection, 1);
        let incoming = accept(&*listener).await;
        assert_eq!(read(&incoming.header).1, 1, "only what is well formed gets here");
        answer(incoming, Bytes::new()).await.expect("the remote is there");
        finished(asked).await.expect("a reply: the connection goes on");
        assert!(!call.is_finished());
        call.abort();
    }
}
