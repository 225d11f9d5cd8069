//! Authentication over the encrypted transports.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::envelope;
use enjambre_core::{KeyPair, Listener, Message, PeerInfo, TransportError};
use enjambre_transport::settings::TransportSettings;
use enjambre_transport::{GuardedTransport, Shared};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{TIMEOUT, call};

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

/// Answers a request with a payload, and returns its sender.
async fn answer(listener: &dyn Listener, payload: Bytes) -> PeerInfo {
    let incoming = listener.accept().await.unwrap();
    let header = envelope::encode_reply(Some(incoming.request.id()), &"done");
    let reply = Message { header, payload };
    incoming.reply.send(reply).await.unwrap();
    incoming.peer
}

#[tokio::test]
async fn requester_is_identified_on_every_connection() {
    let (a, b) = (Node::new(TransportSettings::default()), Node::new(TransportSettings::default()));
    let payload: Bytes = (0..3_000_000u32).map(|number| number as u8).collect();
    for (from, to) in a.transports.iter().zip(&b.transports) {
        let listener = listen(&**to).await;
        assert_eq!(listener.local_endpoint().id(), Some(b.key.peer_id()));
        // The second connection resumes the TLS session of the first.
        for _ in 0..2 {
            let connection = from.connect(listener.local_endpoint()).await.unwrap();
            let (reply, sender) = tokio::join!(call(&*connection), answer(&*listener, payload.clone()));
            assert_eq!(reply.unwrap().payload, payload);
            assert_eq!(sender.identity, Some(a.key.peer_id()));
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn node_with_another_id_is_unreachable() {
    let (a, b) = (Node::new(TransportSettings::default()), Node::new(TransportSettings::default()));
    for (from, to) in a.transports.iter().zip(&b.transports) {
        let listener = listen(&**to).await;
        let other = listener.local_endpoint().with_id(Some(a.key.peer_id()));
        let connection = from.connect(&other).await.unwrap();
        let error = call(&*connection).await.unwrap_err();
        let TransportError::Unreachable { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains(&b.key.peer_id().to_string()), "{source}");
        let without_id = listener.local_endpoint().with_id(None);
        assert!(matches!(from.connect(&without_id).await, Err(TransportError::InvalidEndpoint { .. })));
    }
}

#[tokio::test]
async fn incomplete_handshake_is_closed_after_the_timeout() {
    let settings =
        TransportSettings { handshake_timeout: Duration::from_millis(500), ..TransportSettings::default() };
    let node = Node::new(settings);
    for transport in &node.transports {
        let listener = listen(&**transport).await;
        let address = ("127.0.0.1", listener.local_endpoint().port());
        for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            let closed = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut rest)).await;
            // With or without a TLS alert.
            let _ = closed.expect("the connection is closed");
        }
        listener.shutdown(TIMEOUT).await;
        assert_eq!(transport.connections(), 0);
    }
}
