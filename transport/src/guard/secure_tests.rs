use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Both ends of a TCP connection.
async fn ends() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, connected)
}

/// Performs a handshake between two nodes. The server is expected to have this id.
async fn handshake(
    from: &Security,
    to: &Security,
    wanted: PeerId,
) -> (Result<Stream, Disconnect>, Result<Stream, Disconnect>) {
    let (accepted, connected) = ends().await;
    let dial = async {
        let mut stream = from.connect(connected, wanted).await?;
        // The session ticket arrives with the first bytes after the handshake.
        assert_eq!(stream.read_u8().await?, b'!');
        Ok(stream)
    };
    let accept = async {
        let mut stream = to.accept(accepted).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok(stream)
    };
    tokio::join!(dial, accept)
}

fn kind(stream: &Stream) -> Option<HandshakeKind> {
    let Stream::Right(tls) = stream else { panic!("the stream is not encrypted") };
    tls.get_ref().1.handshake_kind()
}

#[tokio::test]
async fn both_sides_are_identified_in_full_and_resumed_sessions() {
    let [a, b] = [(); 2].map(|()| Security::new(&KeyPair::generate()));
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (dialled, accepted) = handshake(&a, &b, b.id()).await;
        let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!((identity(&dialled), identity(&accepted)), (Some(b.id()), Some(a.id())));
        assert_eq!((kind(&dialled), kind(&accepted)), (Some(expected), Some(expected)));
    }
}

#[tokio::test]
async fn node_with_another_id_is_rejected() {
    let [a, b, c] = [(); 3].map(|()| Security::new(&KeyPair::generate()));
    // Without and with a cached session of the wanted node.
    for _ in 0..2 {
        let (dialled, accepted) = handshake(&a, &c, b.id()).await;
        let error = dialled.unwrap_err();
        assert!(
            matches!(error, Disconnect::WrongNode { wanted, found } if wanted == b.id() && found == c.id()),
            "{error}"
        );
        // The handshake fails before the client sends its key or any data.
        assert!(accepted.is_err());
        handshake(&a, &b, b.id()).await.0.unwrap();
    }
}

#[tokio::test]
async fn client_without_key_is_rejected() {
    let server = Security::new(&KeyPair::generate());
    let provider = Arc::new(provider());
    let verifier = Arc::new(Verifier { provider: Arc::clone(&provider) });
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let (accepted, connected) = ends().await;
    let connector = TlsConnector::from(Arc::new(client));
    let connecting = connector.connect(name_of(server.id()), connected);
    let (accepted, _connected) = tokio::join!(server.accept(accepted), connecting);
    let error = accepted.unwrap_err();
    assert!(matches!(error, Disconnect::Protocol(_)), "{error}");
}

#[tokio::test]
async fn remote_without_tls_is_detected_by_both_sides() {
    let node = Security::new(&KeyPair::generate());
    let (accepted, mut plain) = ends().await;
    plain.write_all(b"\x8aENJTCP\x01").await.unwrap();
    let error = node.accept(accepted).await.unwrap_err();
    assert_eq!(error.to_string(), OTHER_PROTOCOL.to_string());
    let (mut plain, connected) = ends().await;
    plain.write_all(b"\x8aENJTCP\x01").await.unwrap();
    let error = node.connect(connected, node.id()).await.unwrap_err();
    assert_eq!(error.to_string(), OTHER_PROTOCOL.to_string());
}
