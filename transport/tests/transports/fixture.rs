//! A listener that answers requests, and a client that must be served during all attacks.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope;
use enjambre_core::{Connection, ConnectionId, Deadline, Listener, Message, RequestId, TransportError};
use enjambre_transport::GuardedTransport;
use enjambre_transport::settings::TransportSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::raw_protocol::{RawProtocol, Side};

/// The header of a request.
pub(crate) fn request(id: u64) -> Bytes {
    envelope::encode_request(RequestId(id), &"status")
}

/// The header of a reply.
pub(crate) fn reply(id: u64) -> Bytes {
    envelope::encode_reply(Some(RequestId(id)), &"done")
}

/// Maximum duration of a step that must complete.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const CALL: Deadline = Deadline::Total(TIMEOUT);
pub(crate) const LARGE: usize = 1 << 20;

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future).await.unwrap_or_else(|_| panic!("timeout of {TIMEOUT:?}: {what}"))
}

pub(crate) async fn call(connection: &dyn Connection) -> Result<Message, TransportError> {
    let id = connection.next_id();
    connection.call(id, request(id.0), CALL).await
}

/// Polls a condition.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    in_time(what, holds).await;
}

/// A listener and its address.
pub(crate) async fn listen(transport: &dyn GuardedTransport) -> (Arc<dyn Listener>, String) {
    let endpoint = format!("{}://127.0.0.1:0", transport.scheme()).parse().unwrap();
    let listener = transport.bind(&endpoint).await.unwrap();
    let address = format!("127.0.0.1:{}", listener.local_endpoint().port());
    (listener, address)
}

/// A client after the handshake.
pub(crate) async fn greeted<S: RawProtocol>(address: &str) -> TcpStream {
    greeted_from::<S>(Ipv4Addr::LOCALHOST, address).await
}

/// A client after the handshake, with this source address.
pub(crate) async fn greeted_from<S: RawProtocol>(from: Ipv4Addr, address: &str) -> TcpStream {
    let greeting = async {
        let mut stream = S::dial(from, address).await;
        stream.write_all(&S::greeting(Side::Client)).await.unwrap();
        S::take_greeting(&mut stream).await.unwrap();
        stream
    };
    in_time("handshake", greeting).await
}

/// The connection and the result of a reply.
pub(crate) type Sent = (ConnectionId, Result<(), TransportError>);

/// Answers all requests. Replies have this text in the header, and payloads of `size` bytes except on the first connection.
fn answer(listener: Arc<dyn Listener>, text: String, size: usize) -> mpsc::UnboundedReceiver<Sent> {
    let (report, sent) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut first = None;
        while let Ok(mut incoming) = listener.accept().await {
            let connection = incoming.peer.connection;
            assert!(incoming.peer.address.is_some_and(|address| address.is_ipv4() && address.is_loopback()));
            let size = if *first.get_or_insert(connection) == connection { 0 } else { size };
            let (report, text) = (report.clone(), text.clone());
            tokio::spawn(async move {
                let header = envelope::encode_reply(Some(incoming.request.id()), &text);
                let sent = match incoming.reply.reserve(size).await {
                    Ok(()) => {
                        let payload = Bytes::from(vec![7; size]);
                        incoming.reply.send(Message { header, payload }).await
                    }
                    Err(error) => Err(error),
                };
                let _ = report.send((connection, sent));
            });
        }
    });
    sent
}

/// A listener, a reference client that calls it continuously, and the results of the replies.
pub(crate) struct Fixture {
    pub(crate) transport: Arc<dyn GuardedTransport>,
    pub(crate) listener: Arc<dyn Listener>,
    pub(crate) address: String,
    reference_client: JoinHandle<()>,
    calls: Arc<AtomicU64>,
    /// The result of each reply.
    pub(crate) sent: mpsc::UnboundedReceiver<Sent>,
}

impl Fixture {
    /// Replies have payloads of `size` bytes, except those to the reference client.
    pub(crate) async fn new<S: RawProtocol>(settings: TransportSettings, size: usize) -> Self {
        Self::replying::<S>(settings, "done".to_owned(), size).await
    }

    /// As [`Fixture::new`], with this text in the headers of all replies.
    pub(crate) async fn replying<S: RawProtocol>(
        settings: TransportSettings,
        text: String,
        size: usize,
    ) -> Self {
        let transport = S::transport(settings);
        let (listener, address) = listen(&*transport).await;
        let sent = answer(Arc::clone(&listener), text, size);
        let connection = transport.connect(listener.local_endpoint()).await.unwrap();
        in_time("first reply", call(&*connection)).await.unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let reference_client = tokio::spawn(async move {
            loop {
                call(&*connection).await.expect("the reference client is served");
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self { transport, listener, address, reference_client, calls, sent }
    }

    /// A client before the handshake.
    pub(crate) async fn connect<S: RawProtocol>(&self) -> TcpStream {
        S::dial(Ipv4Addr::LOCALHOST, &self.address).await
    }

    /// Checks that the reference client was served all the time.
    pub(crate) async fn end(self) {
        let before = self.calls.load(Ordering::Relaxed);
        until("replies to the reference client", || {
            assert!(!self.reference_client.is_finished(), "the reference client lost its connection");
            self.calls.load(Ordering::Relaxed) >= before + 3
        })
        .await;
        self.reference_client.abort();
        in_time("shutdown", self.listener.shutdown(TIMEOUT)).await;
        assert_eq!(self.transport.connections(), 0);
        // A reply of the service may get its bytes just before the shutdown, and releases them when it is polled again.
        until("release of the reply budget", || self.transport.queued_reply_bytes() == 0).await;
    }
}

pub(crate) fn short_handshake() -> TransportSettings {
    TransportSettings { handshake_timeout: Duration::from_millis(500), ..TransportSettings::default() }
}

/// Reads until the remote closes the connection, orderly or not.
pub(crate) async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut scratch = vec![0; 65_536];
    let end = async { while stream.read(&mut scratch).await.is_ok_and(|read| read > 0) {} };
    in_time("end of the connection", end).await;
}
