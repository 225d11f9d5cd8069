//! What an attack has to know of a transport to speak it by hand.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_transport::GuardedTransport;
use enjambre_transport::settings::TransportSettings;
use tokio::net::{TcpSocket, TcpStream};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A stream from this loopback address.
pub(crate) async fn connected(from: Ipv4Addr, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let stream = socket.connect(address.parse().unwrap()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A transport as it lies on the stream.
pub(crate) trait Spoken: Send + 'static {
    fn transport(settings: TransportSettings) -> Arc<dyn GuardedTransport>;

    /// Where it is spoken at an address.
    fn endpoint(address: &str) -> Endpoint {
        format!("{}://{address}", Self::transport(TransportSettings::default()).scheme()).parse().unwrap()
    }

    /// A stream from this loopback address to whoever listens there, over which it can be spoken.
    fn dial(from: Ipv4Addr, address: &str) -> impl Future<Output = TcpStream> + Send {
        connected(from, address)
    }

    /// The same of an accepted stream.
    fn accepted(stream: TcpStream) -> impl Future<Output = TcpStream> + Send {
        async move { stream }
    }

    /// All that a side says before its first message.
    fn greeting(side: Side) -> Vec<u8>;

    /// Takes the greeting of the other side.
    fn take_greeting(stream: &mut TcpStream) -> impl Future<Output = io::Result<()>> + Send;

    /// A good request.
    fn request(id: u64) -> Vec<u8>;

    /// The header and the payload of the next reply.
    fn reply(stream: &mut TcpStream) -> impl Future<Output = (Bytes, Bytes)> + Send;

    /// How much of a client's greeting is said by those who do not finish it.
    fn half_greetings() -> Vec<usize>;

    /// What no greeting begins with, or none that fits.
    fn false_greetings() -> Vec<Vec<u8>>;

    /// Requests that break the framing or a limit.
    fn broken_requests() -> Vec<Vec<u8>>;

    /// Requests that keep to the framing and mean nothing, and the id that can be read all the same.
    fn malformed_requests() -> Vec<(Vec<u8>, Option<u64>)>;

    /// Requests that are not finished; the first lacks dozens of bytes.
    fn begun_requests() -> Vec<Vec<u8>>;

    /// Replies that break the framing or a limit, or that nobody asked for.
    fn broken_replies() -> Vec<Vec<u8>>;

    /// The reply to request 1, which ends within its payload.
    fn begun_reply() -> Vec<u8>;
}

/// Requests one behind the other.
pub(crate) fn requests<S: Spoken>(ids: std::ops::Range<u64>) -> Vec<u8> {
    ids.flat_map(S::request).collect()
}
