//! TLS 1.3 with mutual authentication by Ed25519 keys (RFC 8446, RFC 8032).
//!
//! Both sides send their raw public key (RFC 7250) instead of a certificate: an id is the hash of a key, so a certificate
//! would add no information, and no certificate parser processes bytes of a remote. The requesting side accepts only the
//! node with the id of the endpoint. The answering side accepts any node. A resumed session has the same key.

use std::io;
use std::sync::Arc;

use enjambre_core::model::identity::PublicKey;
use enjambre_core::{KeyPair, PeerId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientSessionMemoryCache, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::disconnect::{Disconnect, OTHER_PROTOCOL};
use super::stream::{Socket, Stream};

/// The prefix of a 32-byte Ed25519 key in `SubjectPublicKeyInfo` and in PKCS #8 (RFC 8410).
const PUBLIC: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const SECRET: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// The number of cached sessions on each side, for resumption.
const SESSIONS: usize = 256;

/// The TLS configuration of a node.
#[derive(Clone)]
pub(crate) struct Security {
    id: PeerId,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Security").finish_non_exhaustive()
    }
}

impl Security {
    /// Creates the configuration of the node with this key.
    pub(crate) fn new(key: &KeyPair) -> Self {
        let provider = Arc::new(provider());
        let pkcs8 = [&SECRET[..], &key.secret()].concat();
        let signing = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8));
        let signing = signing.expect("any 32 bytes are an Ed25519 private key");
        let public = signing.public_key().expect("an Ed25519 key has a public key").to_vec();
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], signing));
        let verifier = Arc::new(Verifier { provider: Arc::clone(&provider) });

        let supported = "the provider supports TLS 1.3";
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect(supported)
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(
                &certified,
            ))));
        // The name is the id, which an observer should not learn.
        client.enable_sni = false;
        client.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect(supported)
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        server.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        server.send_tls13_tickets = 1;
        Self { id: key.peer_id(), acceptor: Arc::new(server).into(), connector: Arc::new(client).into() }
    }

    /// The id of this node.
    pub(crate) const fn id(&self) -> PeerId {
        self.id
    }

    /// Performs the handshake of the answering side. The caller limits the time.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<Stream, Disconnect> {
        let tls = self.acceptor.accept(Socket::new(stream)).await.map_err(explain)?;
        peer(tls.get_ref().1)?;
        Ok(Stream::Right(Box::new(TlsStream::Server(tls))))
    }

    /// Performs the handshake of the requesting side with the node with this id. The caller limits the time.
    pub(crate) async fn connect(&self, stream: TcpStream, wanted: PeerId) -> Result<Stream, Disconnect> {
        let tls = self.connector.connect(name_of(wanted), Socket::new(stream)).await.map_err(explain)?;
        // A resumed session skips the verifier.
        check(wanted, peer(tls.get_ref().1)?)?;
        Ok(Stream::Right(Box::new(TlsStream::Client(tls))))
    }
}

/// Supports TLS 1.3 only. Prefers AES if the processor accelerates it.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    let mut cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
    cipher_suites.insert(if has_aes { 2 } else { 0 }, TLS13_CHACHA20_POLY1305_SHA256);
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

/// Returns the server name of a node, by which rustls caches sessions. A label has at most 63 characters.
fn name_of(id: PeerId) -> ServerName<'static> {
    let digits = id.to_string();
    let (front, back) = digits.split_at(32);
    ServerName::try_from(format!("{front}.{back}")).expect("hexadecimal digits are a valid name")
}

fn id_of(name: &ServerName<'_>) -> Option<PeerId> {
    let ServerName::DnsName(name) = name else { return None };
    name.as_ref().replace('.', "").parse().ok()
}

/// Returns the id of a raw public key.
fn owner(key: &CertificateDer<'_>) -> Result<PeerId, Error> {
    let public = key.as_ref().strip_prefix(&PUBLIC).and_then(|bytes| bytes.try_into().ok());
    let public: [u8; 32] = public.ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(PublicKey::from_bytes(public).peer_id())
}

/// Returns the id of the remote after the handshake.
fn peer(connection: &CommonState) -> Result<PeerId, Disconnect> {
    const MISSING: Disconnect = Disconnect::Protocol("the remote sent no valid key");
    let key = connection.peer_certificates().and_then(<[_]>::first).ok_or(MISSING)?;
    owner(key).map_err(|_| MISSING)
}

/// Returns the authenticated id of the remote; `None` for a stream without encryption.
pub(crate) fn identity(stream: &Stream) -> Option<PeerId> {
    match stream {
        Stream::Left(_) => None,
        Stream::Right(tls) => peer(tls.get_ref().1).ok(),
    }
}

fn check(wanted: PeerId, found: PeerId) -> Result<(), Disconnect> {
    if wanted == found { Ok(()) } else { Err(Disconnect::WrongNode { wanted, found }) }
}

/// Translates the error of a handshake.
fn explain(error: io::Error) -> Disconnect {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            match other.downcast_ref() {
                Some(&Disconnect::WrongNode { wanted, found }) => Disconnect::WrongNode { wanted, found },
                _ => Disconnect::Io(error),
            }
        }
        Some(Error::InvalidMessage(_)) => OTHER_PROTOCOL,
        Some(Error::PeerIncompatible(_) | Error::AlertReceived(_) | Error::NoCertificatesPresented) => {
            Disconnect::Protocol("the remote does not support TLS 1.3 with raw Ed25519 keys")
        }
        _ => Disconnect::Io(error),
    }
}

/// Accepts the key of any client, and of the server only the key with the id of the endpoint.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }
}

/// TLS 1.2 is never negotiated.
fn older_tls() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not supported".to_owned()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let wanted =
            id_of(name).ok_or_else(|| Error::General("the server name is not a node id".to_owned()))?;
        let other =
            |another| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(another))));
        check(wanted, owner(key)?).map_err(other)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        older_tls()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        owner(key)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        older_tls()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[path = "secure_tests.rs"]
mod tests;
