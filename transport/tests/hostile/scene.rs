//! A listener that answers, and a client that it keeps serving whatever others do.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope::{self, RequestId};
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, ConnectionId, Deadline, Listener, Message};
use enjambre_transport::GuardedTransport;
use enjambre_transport::settings::TransportSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::spoken::{Side, Spoken};

/// Some header with this id.
pub(crate) fn header(id: Option<u64>) -> Bytes {
    envelope::malformed_reply(id.map(RequestId), "")
}

/// How long a case waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const CALL: Deadline = Deadline::Total(PATIENCE);
pub(crate) const LARGE: usize = 1 << 20;

pub(crate) async fn soon<T>(what: &str, happening: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happening)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

pub(crate) async fn call(connection: &dyn Connection) -> Result<Message, TransportError> {
    let id = connection.next_id();
    connection.call(id, header(Some(id.0)), CALL).await
}

/// Waits for a condition of which nobody tells.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(what, holds).await;
}

/// A listener of this transport, and where it can be reached.
pub(crate) async fn listen(transport: &dyn GuardedTransport) -> (Arc<dyn Listener>, String) {
    let endpoint = format!("{}://127.0.0.1:0", transport.scheme()).parse().unwrap();
    let listener = transport.bind(&endpoint).await.unwrap();
    let address = format!("127.0.0.1:{}", listener.local_endpoint().port());
    (listener, address)
}

/// A client past the greeting.
pub(crate) async fn greeted<S: Spoken>(address: &str) -> TcpStream {
    greeted_from::<S>(Ipv4Addr::LOCALHOST, address).await
}

/// The same from another loopback address.
pub(crate) async fn greeted_from<S: Spoken>(from: Ipv4Addr, address: &str) -> TcpStream {
    let greeting = async {
        let mut stream = S::dial(from, address).await;
        stream.write_all(&S::greeting(Side::Client)).await.unwrap();
        S::take_greeting(&mut stream).await.unwrap();
        stream
    };
    soon("a greeting", greeting).await
}

/// What became of the reply to a request of a connection.
pub(crate) type Sent = (ConnectionId, Result<(), TransportError>);

/// Answers everything; replies have payloads of `size` bytes, except on the first connection.
fn answer(listener: Arc<dyn Listener>, size: usize) -> mpsc::UnboundedReceiver<Sent> {
    let (report, sent) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut first = None;
        while let Ok(mut incoming) = listener.accept().await {
            let connection = incoming.peer.connection;
            assert!(incoming.peer.address.is_some_and(|address| address.is_ipv4() && address.is_loopback()));
            let size = if *first.get_or_insert(connection) == connection { 0 } else { size };
            let report = report.clone();
            tokio::spawn(async move {
                let id = envelope::read(&incoming.header).and_then(|envelope| envelope.id);
                let sent = match incoming.reply.reserve(size).await {
                    Ok(()) => {
                        let payload = Bytes::from(vec![7; size]);
                        incoming.reply.send(Message { header: header(id.map(|id| id.0)), payload }).await
                    }
                    Err(error) => Err(error),
                };
                let _ = report.send((connection, sent));
            });
        }
    });
    sent
}

/// A listener, a client that calls all the time, and what becomes of the replies.
pub(crate) struct Scene {
    pub(crate) transport: Arc<dyn GuardedTransport>,
    pub(crate) listener: Arc<dyn Listener>,
    pub(crate) address: String,
    bystander: JoinHandle<()>,
    calls: Arc<AtomicU64>,
    /// The connection and result of every reply.
    pub(crate) sent: mpsc::UnboundedReceiver<Sent>,
}

impl Scene {
    /// Replies have payloads of `size` bytes, except to the bystander, who is on the first connection.
    pub(crate) async fn new<S: Spoken>(settings: TransportSettings, size: usize) -> Self {
        let transport = S::transport(settings);
        let (listener, address) = listen(&*transport).await;
        let sent = answer(Arc::clone(&listener), size);
        let connection = transport.connect(listener.local_endpoint()).await.unwrap();
        soon("the first reply", call(&*connection)).await.unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let bystander = tokio::spawn(async move {
            loop {
                call(&*connection).await.expect("the bystander is served");
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self { transport, listener, address, bystander, calls, sent }
    }

    /// A client before the greeting.
    pub(crate) async fn connect<S: Spoken>(&self) -> TcpStream {
        S::dial(Ipv4Addr::LOCALHOST, &self.address).await
    }

    /// The bystander was served all the time, and still is.
    pub(crate) async fn end(self) {
        let before = self.calls.load(Ordering::Relaxed);
        until("replies to the bystander", || {
            assert!(!self.bystander.is_finished(), "the bystander lost its connection");
            self.calls.load(Ordering::Relaxed) >= before + 3
        })
        .await;
        self.bystander.abort();
        soon("shutdown", self.listener.shutdown(PATIENCE)).await;
        assert_eq!((self.transport.connections(), self.transport.queued_reply_bytes()), (0, 0));
    }
}

pub(crate) fn short_handshake() -> TransportSettings {
    TransportSettings { handshake: Duration::from_millis(500), ..TransportSettings::default() }
}

/// Reads until the other side closes, cleanly or not.
pub(crate) async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut scratch = vec![0; 65_536];
    let end = async { while stream.read(&mut scratch).await.is_ok_and(|read| read > 0) {} };
    soon("the connection is closed", end).await;
}
