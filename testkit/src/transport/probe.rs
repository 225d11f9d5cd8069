//! The messages of the suite, and helpers to send, receive and answer them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use enjambre_core::transport::envelope;
use enjambre_core::{
    Connection, Deadline, EncodedRequest, Incoming, Listener, Message, RequestId, TransportError,
};

/// Maximum duration of a step that must complete.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A call that ends long after [`TIMEOUT`].
pub(super) const LONG: Deadline = Deadline::Total(Duration::from_secs(2 * TIMEOUT.as_secs()));

/// The request and the reply of the suite.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Probe {
    Probe {
        number: u64,
        #[serde(default, with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
        filler: Vec<u8>,
    },
}

impl Probe {
    fn new(number: u64, filler: usize) -> Self {
        Self::Probe { number, filler: vec![7; filler] }
    }
}

/// The header of a request with a number and filler bytes.
pub(super) fn request(id: RequestId, number: u64, filler: usize) -> Bytes {
    envelope::encode_request(id, &Probe::new(number, filler))
}

/// The header of a reply with a number and filler bytes.
pub(super) fn reply(id: RequestId, number: u64, filler: usize) -> Bytes {
    envelope::encode_reply(Some(id), &Probe::new(number, filler))
}

/// The number and the number of filler bytes of a request.
pub(super) fn read(request: &EncodedRequest) -> (u64, usize) {
    let Probe::Probe { number, filler } = request.decode().expect("a request of the suite");
    (number, filler.len())
}

/// The number of a reply.
fn read_reply(header: &[u8]) -> u64 {
    let reply = envelope::parse_reply(header).expect("a reply").expect("no error");
    let Probe::Probe { number, .. } = envelope::decode(&reply).expect("a reply of the suite");
    number
}

pub(super) fn payload(number: u64, size: usize) -> Bytes {
    /// The bytes repeat after this size. Copies are much faster than the computation in a build without optimization.
    const PERIOD: usize = 1 << 17;
    let byte = |at: u64| at.wrapping_mul(31).wrapping_add(at >> 9).wrapping_add(number) as u8;
    let mut bytes: Vec<u8> = (0..size.min(PERIOD) as u64).map(byte).collect();
    while bytes.len() < size {
        bytes.extend_from_within(..bytes.len().min(size - bytes.len()));
    }
    bytes.into()
}

/// Panics if the future takes longer than [`TIMEOUT`].
pub(super) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(output) => output,
        Err(_) => panic!("timeout of {TIMEOUT:?}: {what}"),
    }
}

/// Sends a request with a number. Returns the number and payload of the reply.
pub(super) async fn call(
    connection: &dyn Connection,
    number: u64,
    deadline: Deadline,
) -> Result<(u64, Bytes), TransportError> {
    let id = connection.next_id();
    let message = connection.call(id, request(id, number, 0), deadline).await?;
    assert_eq!(envelope::id_of(&message.header), Some(id), "a reply has the id of its request");
    Ok((read_reply(&message.header), message.payload))
}

pub(super) type Call = JoinHandle<Result<(u64, Bytes), TransportError>>;

/// Runs [`call`] in a task.
pub(super) fn spawn_call(connection: &Arc<dyn Connection>, number: u64) -> Call {
    let connection = Arc::clone(connection);
    tokio::spawn(async move { call(&*connection, number, LONG).await })
}

pub(super) async fn join(call: Call) -> Result<(u64, Bytes), TransportError> {
    in_time("end of a call", call).await.expect("a call does not panic")
}

pub(super) async fn accept(listener: &dyn Listener) -> Incoming {
    in_time("request", listener.accept()).await.expect("the listener is open")
}

/// Answers a request with its number and a payload.
pub(super) async fn answer(incoming: Incoming, payload: Bytes) -> Result<(), TransportError> {
    let (number, _) = read(&incoming.request);
    let message = Message { header: reply(incoming.request.id(), number, 0), payload };
    in_time("budget for a reply", incoming.reply.send(message)).await
}

/// Answers all requests until the listener is shut down.
pub(super) fn echo(listener: &Arc<dyn Listener>) -> JoinHandle<()> {
    let listener = Arc::clone(listener);
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            tokio::spawn(answer(incoming, Bytes::new()));
        }
    })
}

/// Repeats a call while the connection is being restored.
pub(super) async fn call_until_answered(connection: &dyn Connection, number: u64) -> u64 {
    let calls = async {
        loop {
            match call(connection, number, Deadline::Total(TIMEOUT)).await {
                Ok((number, _)) => return number,
                Err(TransportError::Unreachable { .. } | TransportError::Lost { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("call over a restored connection failed: {error}"),
            }
        }
    };
    in_time("restored connection", calls).await
}
