//! The conformance kit for [`Transport`]: what every transport must do, as tests by name.
//!
//! A plug-in writes a function that returns a [`Subject`] and hands it to [`transport_conformance!`](
//! crate::transport_conformance), which makes one test of each case. Nothing here depends on how fast the machine
//! is: where a case waits, it waits for an event, and gives up after [`PATIENCE`].

mod calls;
mod lifecycle;
mod limits;

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

pub use calls::*;
pub use lifecycle::*;
pub use limits::*;

use super::envelope::{self, PROTOCOL_VERSION, RequestId};
use super::error::TransportError;
use super::{Connection, Deadline, Incoming, Listener, Message, MessageLimits, Transport};
use crate::model::endpoint::Endpoint;

/// How long a case waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A transport to be tested.
#[derive(Debug)]
pub struct Subject {
    /// The transport, with nothing else going on in it.
    pub transport: Arc<dyn Transport>,
    /// An endpoint that can be listened at, with port 0.
    pub endpoint: Endpoint,
    /// The limits that the transport was set up with; payload and header are at least the default ones.
    pub limits: MessageLimits,
    /// Is dropped last.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// Makes a test of each case of the kit. Takes an expression that gives a fresh
/// [`Subject`](crate::transport::conformance::Subject); the crate that uses it needs tokio with the features
/// `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! transport_conformance {
    ($build:expr) => {
        $crate::transport_conformance! { @each $build;
            many_calls_at_once_get_their_own_replies
            replies_come_in_any_order
            requests_arrive_in_the_order_of_their_sending
            payloads_of_every_size_arrive_whole
            a_total_deadline_ends_the_call_and_not_the_connection
            a_silence_deadline_counts_from_the_last_byte
            a_dropped_call_does_not_disturb_the_connection
            ids_are_never_the_same
            connections_are_told_apart
            a_restarted_listener_is_found_again
            nobody_listening_is_known_promptly
            shutdown_ends_accept_and_the_calls_under_way
            a_dropped_listener_is_shut_down
            a_reply_given_before_shutdown_arrives
            a_closed_connection_fails_its_calls
            a_reply_to_a_remote_that_is_gone_is_refused
            a_connection_can_be_ended_by_who_answers
            what_waits_on_a_connection_that_is_ended_makes_room
            who_answers_knows_when_a_connection_has_ended
            endpoints_that_cannot_be_used_are_refused
            an_endpoint_is_listened_at_once
            a_header_beyond_the_limit_is_not_sent
            a_reply_beyond_the_limits_is_not_sent
            one_more_call_than_allowed_waits
            a_request_that_is_dropped_makes_room
            who_does_not_take_replies_leaves_room_for_others
            replies_that_take_up_the_whole_budget_are_sent
            a_header_that_is_malformed_never_reaches_the_service
        }
    };
    (@each $build:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::transport::conformance::$case($build).await;
            }
        )*
    };
}

#[derive(Serialize, Deserialize)]
struct Header {
    v: u32,
    id: RequestId,
    number: u64,
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    filler: Vec<u8>,
}

/// The header of a request or reply with a number in it.
fn header(id: RequestId, number: u64) -> Bytes {
    header_with(id, number, 0)
}

fn header_with(id: RequestId, number: u64, filler: usize) -> Bytes {
    let header = Header { v: PROTOCOL_VERSION, id, number, filler: vec![7; filler] };
    let mut bytes = Vec::new();
    ciborium::into_writer(&header, &mut bytes).expect("plain values are written to memory without fail");
    bytes.into()
}

fn read(header: &[u8]) -> (RequestId, u64) {
    let Header { id, number, .. } = ciborium::from_reader(header).expect("a header of the kit");
    (id, number)
}

fn payload(number: u64, size: usize) -> Bytes {
    (0..size)
        .map(|at| (at as u64).wrapping_mul(31).wrapping_add(at as u64 >> 9).wrapping_add(number) as u8)
        .collect()
}

/// What must happen soon.
async fn soon<T>(what: &str, happening: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, happening).await {
        Ok(happened) => happened,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Calls with a number; the reply's number and payload.
async fn ask(
    connection: &dyn Connection,
    number: u64,
    deadline: Deadline,
) -> Result<(u64, Bytes), TransportError> {
    let id = connection.next_id();
    let message = connection.call(id, header(id, number), deadline).await?;
    let (reply_id, number) = read(&message.header);
    assert_eq!(reply_id, id, "a reply with the id of its request");
    Ok((number, message.payload))
}

type Asked = JoinHandle<Result<(u64, Bytes), TransportError>>;

/// The same in a task of its own, with all the time in the world.
fn asking(connection: &Arc<dyn Connection>, number: u64) -> Asked {
    let connection = Arc::clone(connection);
    tokio::spawn(async move { ask(&*connection, number, Deadline::Total(2 * PATIENCE)).await })
}

async fn finished(asked: Asked) -> Result<(u64, Bytes), TransportError> {
    soon("the end of a call", asked).await.expect("a call does not panic")
}

async fn accept(listener: &dyn Listener) -> Incoming {
    soon("a request", listener.accept()).await.expect("the listener is open")
}

/// Answers a request with its own number and a payload.
async fn answer(incoming: Incoming, payload: Bytes) -> Result<(), TransportError> {
    let (id, number) = read(&incoming.header);
    let reply = Message { header: header(id, number), payload };
    soon("room for a reply", incoming.reply.send(reply)).await
}

/// Answers every request with its own number, until the listener is shut down.
fn echo(listener: &Arc<dyn Listener>) -> JoinHandle<()> {
    let listener = Arc::clone(listener);
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            tokio::spawn(answer(incoming, Bytes::new()));
        }
    })
}

impl Subject {
    async fn listen(&self) -> Arc<dyn Listener> {
        let listener = soon("binding", self.transport.bind(&self.endpoint)).await.expect("a free endpoint");
        assert_ne!(listener.local_endpoint().port(), 0, "the port that was chosen is told");
        listener
    }

    async fn connect(&self, endpoint: &Endpoint) -> Arc<dyn Connection> {
        soon("a connection", self.transport.connect(endpoint)).await.expect("a good endpoint")
    }

    async fn pair(&self) -> (Arc<dyn Listener>, Arc<dyn Connection>) {
        let listener = self.listen().await;
        let connection = self.connect(listener.local_endpoint()).await;
        (listener, connection)
    }
}

/// Calls until it succeeds, for a connection that is about to come back.
async fn ask_until_answered(connection: &dyn Connection, number: u64) -> u64 {
    let asking = async {
        loop {
            match ask(connection, number, Deadline::Total(PATIENCE)).await {
                Ok((number, _)) => return number,
                Err(TransportError::Unreachable { .. } | TransportError::Lost { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("a call over a connection that comes back: {error}"),
            }
        }
    };
    soon("a connection that comes back", asking).await
}
