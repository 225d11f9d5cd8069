use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Both ends of a connection whose hands are to be shaken.
async fn ends() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, dialled)
}

/// Lets one node dial another, which is to have this id.
async fn shake(
    from: &Security,
    to: &Security,
    wanted: PeerId,
) -> (Result<Stream, CutOff>, Result<Stream, CutOff>) {
    let (accepted, dialled) = ends().await;
    let dial = async {
        let mut stream = from.connect(dialled, wanted).await?;
        // What lets a session be resumed comes right behind the handshake, with the first bytes.
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
    let Stream::Secure(secured) = stream else { panic!("it is plain") };
    secured.tls.get_ref().1.handshake_kind()
}

#[tokio::test]
async fn each_side_learns_who_the_other_is_also_when_a_session_is_resumed() {
    let [a, b] = [(); 2].map(|()| Security::new(&KeyPair::generate()));
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (dialled, accepted) = shake(&a, &b, b.id()).await;
        let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!((dialled.identity(), accepted.identity()), (Some(b.id()), Some(a.id())));
        assert_eq!((kind(&dialled), kind(&accepted)), (Some(expected), Some(expected)));
    }
}

#[tokio::test]
async fn nobody_else_than_who_was_dialled_is_talked_to() {
    let [a, b, c] = [(); 3].map(|()| Security::new(&KeyPair::generate()));
    // With and without a session that could be resumed with the one that is wanted.
    for _ in 0..2 {
        let (dialled, accepted) = shake(&a, &c, b.id()).await;
        let error = dialled.unwrap_err();
        assert!(
            matches!(error, CutOff::Another { wanted, found } if wanted == b.id() && found == c.id()),
            "{error}"
        );
        // Before a byte was sent to it, or who asks was told.
        assert!(accepted.is_err());
        shake(&a, &b, b.id()).await.0.unwrap();
    }
}

#[tokio::test]
async fn who_shows_no_key_does_not_get_in() {
    let server = Security::new(&KeyPair::generate());
    let provider = Arc::new(provider());
    let verifier = Arc::new(Verifier { provider: Arc::clone(&provider) });
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let (accepted, dialled) = ends().await;
    let connector = TlsConnector::from(Arc::new(client));
    let connecting = connector.connect(name_of(server.id()), dialled);
    let (accepted, _connected) = tokio::join!(server.accept(accepted), connecting);
    let error = accepted.unwrap_err();
    assert!(matches!(error, CutOff::Protocol(_)), "{error}");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_apart_from_either_side() {
    let node = Security::new(&KeyPair::generate());
    let (accepted, mut plain) = ends().await;
    plain.write_all(b"\x8aENJTCP\x01").await.unwrap();
    let error = node.accept(accepted).await.unwrap_err();
    assert!(matches!(error, CutOff::Protocol("it does not speak TLS")), "{error}");
    let (mut plain, dialled) = ends().await;
    plain.write_all(b"\x8aENJTCP\x01").await.unwrap();
    let error = node.connect(dialled, node.id()).await.unwrap_err();
    assert!(matches!(error, CutOff::Protocol("it does not speak TLS")), "{error}");
}
