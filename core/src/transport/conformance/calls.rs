//! Cases about calls: matching, order, size, deadlines, cancelling.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::*;

/// Many more calls than may be in flight, from many tasks: each gets the reply to its own request.
pub async fn many_calls_at_once_get_their_own_replies(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let served = echo(&listener);
    let asked: Vec<_> = (0..1000).map(|number| asking(&connection, number)).collect();
    for (number, asked) in asked.into_iter().enumerate() {
        assert_eq!(finished(asked).await.expect("a reply").0, number as u64);
    }
    listener.shutdown(Duration::ZERO).await;
    soon("the end of the service", served).await.expect("no panic");
}

/// Replies in the reverse order of the requests find their calls.
pub async fn replies_come_in_any_order(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let asked: Vec<_> = (0..8).map(|number| asking(&connection, number)).collect();
    let mut requests = Vec::new();
    for _ in &asked {
        requests.push(accept(&*listener).await);
    }
    for incoming in requests.into_iter().rev() {
        let (_, number) = read(&incoming.header);
        answer(incoming, payload(number, 1000)).await.expect("the remote is there");
    }
    for (number, asked) in asked.into_iter().enumerate() {
        let number = number as u64;
        assert_eq!(finished(asked).await.expect("a reply"), (number, payload(number, 1000)));
    }
}

/// The requests of one connection are accepted in the order in which they were sent.
pub async fn requests_arrive_in_the_order_of_their_sending(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let first = asking(&connection, 0);
    answer(accept(&*listener).await, Bytes::new()).await.expect("the remote is there");
    finished(first).await.expect("a reply");
    let asked = tokio::spawn({
        let connection = Arc::clone(&connection);
        // One task polls them in their order.
        async move { join_all((1..30).map(|n| ask(&*connection, n, Deadline::Total(PATIENCE)))).await }
    });
    for number in 1..30 {
        let incoming = accept(&*listener).await;
        assert_eq!(read(&incoming.header).1, number);
        answer(incoming, Bytes::new()).await.expect("the remote is there");
    }
    assert!(soon("the replies", asked).await.expect("no panic").iter().all(Result::is_ok));
}

/// Payloads from nothing to the limit, and headers up to the limit, arrive byte for byte.
pub async fn payloads_of_every_size_arrive_whole(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let most = subject.limits.payload;
    for size in [0, 1, 255, 256, 65_535, 65_536, 256 * 1024, (1 << 20) + 1, most - 1, most] {
        let asked = asking(&connection, size as u64);
        let mut incoming = accept(&*listener).await;
        soon("room", incoming.reply.reserve(size)).await.expect("the remote is there");
        answer(incoming, payload(3, size)).await.expect("the remote is there");
        let (_, got) = finished(asked).await.expect("a reply");
        assert!(got == payload(3, size), "a payload of {size} bytes arrives as {} bytes", got.len());
    }
    // The largest header, both ways.
    let id = connection.next_id();
    let filler = subject.limits.header - header_with(id, 1, 60_000).len() + 60_000;
    let large = header_with(id, 1, filler);
    assert_eq!(large.len(), subject.limits.header);
    let asked = tokio::spawn({
        let (connection, large) = (Arc::clone(&connection), large.clone());
        async move { connection.call(id, large, Deadline::Total(PATIENCE)).await }
    });
    let incoming = accept(&*listener).await;
    assert_eq!(incoming.header, large);
    let reply = Message { header: large.clone(), payload: payload(1, most) };
    incoming.reply.send(reply.clone()).await.expect("the remote is there");
    assert!(soon("the reply", asked).await.expect("no panic").expect("a reply") == reply);
}

/// A call without a reply ends with its deadline; the others and later ones do not notice.
pub async fn a_total_deadline_ends_the_call_and_not_the_connection(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let other = asking(&connection, 1);
    let other_request = accept(&*listener).await;
    let error = soon("the deadline", ask(&*connection, 2, Deadline::Total(Duration::from_millis(50))));
    assert!(matches!(error.await, Err(TransportError::Deadline { .. })));
    let late = accept(&*listener).await;
    assert_eq!(read(&late.header).1, 2);
    answer(late, Bytes::new()).await.expect("the remote is there, only nobody waits");
    answer(other_request, Bytes::new()).await.expect("the remote is there");
    assert_eq!(finished(other).await.expect("a reply").0, 1);
}

/// A deadline for silence does not end a call as long as other replies come over the connection.
pub async fn a_silence_deadline_counts_from_the_last_byte(subject: Subject) {
    const SILENCE: Duration = Duration::from_millis(500);
    let (listener, connection) = subject.pair().await;
    let held = {
        let connection = Arc::clone(&connection);
        tokio::spawn(async move { (ask(&*connection, 0, Deadline::Silence(SILENCE)).await, Instant::now()) })
    };
    let held_request = accept(&*listener).await;
    let served = echo(&listener);
    let last = Arc::new(Mutex::new(Instant::now()));
    let chatter = tokio::spawn({
        let (connection, last) = (Arc::clone(&connection), Arc::clone(&last));
        async move {
            for number in 1..=15 {
                let begun = Instant::now();
                ask(&*connection, number, Deadline::Total(PATIENCE)).await.expect("a reply");
                *last.lock() = begun;
                tokio::time::sleep(SILENCE / 10).await;
            }
        }
    });
    let (result, ended) = soon("the deadline", held).await.expect("no panic");
    assert!(matches!(result, Err(TransportError::Deadline { .. })));
    // However slow the machine is: there was no reply in the time before it ended.
    let silent = ended.saturating_duration_since(*last.lock());
    assert!(silent >= SILENCE, "it ended {silent:?} after a reply");
    soon("the end of the chatter", chatter).await.expect("no panic");
    drop((held_request, served));
}

/// A call that is dropped is forgotten: its late reply goes nowhere, and the connection goes on.
pub async fn a_dropped_call_does_not_disturb_the_connection(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    for number in 0..3 {
        let dropped = asking(&connection, number);
        let late = accept(&*listener).await;
        dropped.abort();
        assert!(soon("its end", dropped).await.is_err_and(|error| error.is_cancelled()));
        let other = asking(&connection, 100 + number);
        let request = accept(&*listener).await;
        answer(late, payload(9, 100_000)).await.expect("the remote is there, only nobody waits");
        answer(request, Bytes::new()).await.expect("the remote is there");
        assert_eq!(finished(other).await.expect("a reply"), (100 + number, Bytes::new()));
    }
}

/// Every id is new.
pub async fn ids_are_never_the_same(subject: Subject) {
    let (_listener, connection) = subject.pair().await;
    let ids: HashSet<_> = (0..1000).map(|_| connection.next_id()).collect();
    assert_eq!(ids.len(), 1000);
}

/// Requests of one connection have the same connection id, those of another one another.
pub async fn connections_are_told_apart(subject: Subject) {
    let (listener, connection) = subject.pair().await;
    let second = subject.connect(listener.local_endpoint()).await;
    let mut seen = Vec::new();
    for connection in [&connection, &second, &connection, &second] {
        let asked = asking(connection, 0);
        let incoming = accept(&*listener).await;
        seen.push(incoming.peer.connection);
        answer(incoming, Bytes::new()).await.expect("the remote is there");
        finished(asked).await.expect("a reply");
    }
    assert!(seen[0] == seen[2] && seen[1] == seen[3] && seen[0] != seen[1], "{seen:?}");
}
