//! Encrypted connections between whole transports: who is known, who is refused, and whom the time limit meets.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::transport::envelope::{self, RequestId};
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Deadline, Listener, Message};
use enjambre_transport::settings::TransportSettings;
use enjambre_transport::{GuardedTransport, Shared};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    key: KeyPair,
    transports: [Arc<dyn GuardedTransport>; 2],
}

impl Node {
    fn new(settings: TransportSettings) -> Self {
        let key = KeyPair::generate();
        let transports = Shared::new(settings).unwrap().secure(&key);
        Self { key, transports }
    }
}

async fn listen(transport: &dyn GuardedTransport) -> Arc<dyn Listener> {
    let endpoint = format!("{}://127.0.0.1:0", transport.scheme()).parse().unwrap();
    transport.bind(&endpoint).await.unwrap()
}

async fn call(connection: &dyn Connection) -> Result<Message, TransportError> {
    let id = connection.next_id();
    connection.call(id, envelope::malformed_reply(Some(id), ""), Deadline::Total(PATIENCE)).await
}

/// Answers one request with a payload; gives who asked.
async fn answer(listener: &dyn Listener, payload: Bytes) -> enjambre_core::transport::PeerInfo {
    let incoming = listener.accept().await.unwrap();
    let id: RequestId = envelope::read(&incoming.header).and_then(|envelope| envelope.id).unwrap();
    let reply = Message { header: envelope::malformed_reply(Some(id), ""), payload };
    incoming.reply.send(reply).await.unwrap();
    incoming.peer
}

#[tokio::test]
async fn who_answers_knows_who_asks_on_every_connection() {
    let (a, b) = (Node::new(TransportSettings::default()), Node::new(TransportSettings::default()));
    let payload: Bytes = (0..3_000_000u32).map(|number| number as u8).collect();
    for (from, to) in a.transports.iter().zip(&b.transports) {
        let listener = listen(&**to).await;
        assert_eq!(listener.local_endpoint().id(), Some(b.key.peer_id()));
        // The second resumes the session of the first.
        for _ in 0..2 {
            let connection = from.connect(listener.local_endpoint()).await.unwrap();
            let (reply, asker) = tokio::join!(call(&*connection), answer(&*listener, payload.clone()));
            assert_eq!(reply.unwrap().payload, payload);
            assert_eq!(asker.identity, Some(a.key.peer_id()));
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn another_node_at_the_same_place_is_not_talked_to() {
    let (a, b) = (Node::new(TransportSettings::default()), Node::new(TransportSettings::default()));
    for (from, to) in a.transports.iter().zip(&b.transports) {
        let listener = listen(&**to).await;
        let elsewhere = listener.local_endpoint().with_id(Some(a.key.peer_id()));
        let connection = from.connect(&elsewhere).await.unwrap();
        let error = call(&*connection).await.unwrap_err();
        let TransportError::Unreachable { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains(&b.key.peer_id().to_string()), "{source}");
        let nobody = listener.local_endpoint().with_id(None);
        assert!(matches!(from.connect(&nobody).await, Err(TransportError::InvalidEndpoint { .. })));
    }
}

#[tokio::test]
async fn half_a_handshake_is_cut_off_and_counts_as_a_connection_until_then() {
    let settings =
        TransportSettings { handshake: Duration::from_millis(500), ..TransportSettings::default() };
    let node = Node::new(settings);
    for transport in &node.transports {
        let listener = listen(&**transport).await;
        let address = ("127.0.0.1", listener.local_endpoint().port());
        for said in [&b""[..], b"\x16", b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();
            let mut rest = Vec::new();
            let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            // With an alert or without.
            let _ = closed.expect("it is cut off");
        }
        listener.shutdown(PATIENCE).await;
        assert_eq!(transport.connections(), 0);
    }
}
