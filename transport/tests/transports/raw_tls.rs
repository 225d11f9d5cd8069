//! The wire formats inside TLS. An attack sends its bytes to a relay, which has performed the TLS handshake with its own key.

use std::io;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::{Endpoint, KeyPair};
use enjambre_transport::settings::TransportSettings;
use enjambre_transport::{GuardedTransport, Shared};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::raw_protocol::{RawProtocol, Side, connected};

/// The prefix of an Ed25519 private key in PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The key of the attacker.
fn key() -> KeyPair {
    KeyPair::from_secret(&[5; 32])
}

fn certified_key() -> Arc<CertifiedKey> {
    let pkcs8 = [&PKCS8[..], &key().secret()].concat();
    let signing = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).unwrap();
    let public = signing.public_key().unwrap().to_vec();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], signing))
}

/// Relays bytes between an attack and a TLS stream. If the handshake fails, the stream of the attack is closed.
async fn relay<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    handshake: impl Future<Output = io::Result<T>> + Send + 'static,
) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    far.set_nodelay(true).unwrap();
    tokio::spawn(async move {
        if let Ok(mut tls) = handshake.await {
            // Ends when either side closes.
            let _ = copy_bidirectional(&mut tls, &mut far).await;
        }
    });
    near
}

/// A wire format inside TLS.
pub(crate) struct RawTls<S>(PhantomData<S>);

impl<S: RawProtocol> RawProtocol for RawTls<S> {
    fn transport(settings: TransportSettings) -> Arc<dyn GuardedTransport> {
        let scheme = format!("{}s", S::transport(settings.clone()).scheme());
        let both = Shared::new(settings).unwrap().secure(&KeyPair::generate());
        both.into_iter().find(|transport| transport.scheme() == scheme).unwrap()
    }

    fn endpoint(address: &str) -> Endpoint {
        let plain = S::endpoint(address);
        let secure = format!("{}s://{}:{}", plain.scheme(), plain.host(), plain.port());
        secure.parse::<Endpoint>().unwrap().with_id(Some(key().peer_id()))
    }

    async fn dial(from: Ipv4Addr, address: &str) -> TcpStream {
        let stream = connected(from, address).await;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified_key())));
        let name = ServerName::try_from("any").unwrap();
        relay(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }

    async fn accepted(stream: TcpStream) -> TcpStream {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyKey))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified_key())));
        relay(TlsAcceptor::from(Arc::new(config)).accept(stream)).await
    }

    fn greeting(side: Side) -> Vec<u8> {
        S::greeting(side)
    }

    async fn take_greeting(stream: &mut TcpStream) -> io::Result<()> {
        S::take_greeting(stream).await
    }

    fn request(id: u64) -> Vec<u8> {
        S::request(id)
    }

    async fn reply(stream: &mut TcpStream) -> (Bytes, Bytes) {
        S::reply(stream).await
    }

    fn half_greetings() -> Vec<usize> {
        S::half_greetings()
    }

    fn false_greetings() -> Vec<Vec<u8>> {
        S::false_greetings()
    }

    fn broken_requests() -> Vec<Vec<u8>> {
        S::broken_requests()
    }

    fn malformed_requests() -> Vec<(Vec<u8>, Option<u64>)> {
        S::malformed_requests()
    }

    fn begun_requests() -> Vec<Vec<u8>> {
        S::begun_requests()
    }

    fn broken_replies() -> Vec<Vec<u8>> {
        S::broken_replies()
    }

    fn begun_reply() -> Vec<u8> {
        S::begun_reply()
    }
}

/// Accepts any key.
#[derive(Debug)]
struct AnyKey;

type Signature = Result<HandshakeSignatureValid, Error>;

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Signature {
        unreachable!("only TLS 1.3 is enabled")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Signature {
        unreachable!("only TLS 1.3 is enabled")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
