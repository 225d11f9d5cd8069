//! Wire formats at the level of bytes, for attacks that no client library allows.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::Endpoint;
use enjambre_transport::GuardedTransport;
use enjambre_transport::settings::TransportSettings;
use tokio::net::{TcpSocket, TcpStream};

/// The side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// Opens a stream with this source address.
pub(crate) async fn connected(from: Ipv4Addr, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let stream = socket.connect(address.parse().unwrap()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A wire format.
pub(crate) trait RawProtocol: Send + 'static {
    fn transport(settings: TransportSettings) -> Arc<dyn GuardedTransport>;

    /// The endpoint at an address.
    fn endpoint(address: &str) -> Endpoint {
        format!("{}://{address}", Self::transport(TransportSettings::default()).scheme()).parse().unwrap()
    }

    /// Opens a stream with this source address.
    fn dial(from: Ipv4Addr, address: &str) -> impl Future<Output = TcpStream> + Send {
        connected(from, address)
    }

    /// Prepares an accepted stream.
    fn accepted(stream: TcpStream) -> impl Future<Output = TcpStream> + Send {
        async move { stream }
    }

    /// The bytes of a side before its first message.
    fn greeting(side: Side) -> Vec<u8>;

    /// Reads the greeting of the other side.
    fn take_greeting(stream: &mut TcpStream) -> impl Future<Output = io::Result<()>> + Send;

    /// A valid request.
    fn request(id: u64) -> Vec<u8>;

    /// Reads the header and payload of a reply.
    fn reply(stream: &mut TcpStream) -> impl Future<Output = (Bytes, Bytes)> + Send;

    /// Lengths at which a client stops its greeting.
    fn half_greetings() -> Vec<usize>;

    /// Invalid greetings.
    fn false_greetings() -> Vec<Vec<u8>>;

    /// Requests that violate the framing or a limit.
    fn broken_requests() -> Vec<Vec<u8>>;

    /// Malformed requests with valid framing, and the id that is readable in them.
    fn malformed_requests() -> Vec<(Vec<u8>, Option<u64>)>;

    /// Incomplete requests. The first lacks dozens of bytes.
    fn begun_requests() -> Vec<Vec<u8>>;

    /// Replies that violate the framing or a limit, or that have no request.
    fn broken_replies() -> Vec<Vec<u8>>;

    /// The reply to request 1, truncated in its payload.
    fn begun_reply() -> Vec<u8>;
}

/// A sequence of requests.
pub(crate) fn requests<S: RawProtocol>(ids: std::ops::Range<u64>) -> Vec<u8> {
    ids.flat_map(S::request).collect()
}
